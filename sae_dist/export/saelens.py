"""The SAELens layout: sae_weights.safetensors and cfg.json, as `SAE.load_from_disk` reads them.

SAELens has classes for every autoencoder, and for transcoders with ReLU or JumpReLU, with and without skip.
Other transcoders are written in the same layout, as `topk_transcoder`, `topk_skip_transcoder`,
`gated_transcoder` and `gated_skip_transcoder`. Only `load_exported` reads those, as their metadata notes.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_json, write_tensors
from sae_dist.core.sums import check_listed, listing
from sae_dist.export.exported import FORMS, ExportedSae, Latents, tiles
from sae_dist.export.keys import SAELENS
from sae_dist.export.names import FILES
from sae_dist.export.reading import check_k, check_shapes, read_json, read_safetensors, require
from sae_dist.export.sliced import safetensors_file, writing
from sae_dist.export.sound import check_files, check_numbers, check_said

# The SAELens release this layout was checked with; readers take files below 6.0 for another layout.
SAELENS_VERSION = "6.54.12"
SAE_CONFIG, WEIGHTS = FILES["saelens"]
FIRING = "sparsity.safetensors"
SILENT = 1e-10
VECTORS = {kind: {field.removesuffix("_F"): field for field in form.vectors} for kind, form in FORMS.items()}
"""Form -> SAELens' names of its vectors [F] -> their fields in `ExportedSae`."""
OURS_ALONE = "no class of SAELens computes this; sae_dist.export.saelens.load_exported reads it"


def architecture(kind: str, transcoder: bool, skip: bool) -> str:
    """Return SAELens' name for a form: relu is `standard`, and adds nothing to `transcoder`."""
    if not transcoder:
        return "standard" if kind == "relu" else kind
    return f"{'' if kind == 'relu' else kind + '_'}{'skip_' if skip else ''}transcoder"


ARCHITECTURES = {
    architecture(kind, transcoder, skip): (kind, transcoder, skip)
    for kind in VECTORS
    for transcoder, skip in ((False, False), (True, False), (True, True))
}


def export_saelens(folder: Path, latents: Latents) -> None:
    """Write the dictionary as float32, by tiles of latents: W_enc [d_in, d_sae], W_dec [d_sae, d_out].

    Each file is complete or absent. The head's metadata goes into cfg.json's metadata (JSON-able; the keys
    that SAELens knows are model_name, model_class_name, model_from_pretrained_kwargs, hook_name,
    hook_name_out, hf_hook_name, hf_hook_name_out, context_size, prepend_bos, exclude_special_tokens,
    dataset_path, training_architecture).

    Raises:
        SaeDistError: the weights could not be written.
    """
    head = latents.head
    vectors = VECTORS[head.kind]
    shapes = _shapes(head)
    with writing(folder, [WEIGHTS, SAE_CONFIG]):
        with safetensors_file(folder / f".{WEIGHTS}.tmp", shapes) as file:
            for first, tile in tiles(latents):
                file.put_columns("W_enc", tile.W_enc_FD, first)
                file.put("W_dec", tile.W_dec_FE, first)
                for name, ours in vectors.items():
                    file.put(name, getattr(tile, ours), first)
            file.put("b_dec", head.b_dec_E)
            if head.W_skip_ED is not None:
                file.put("W_skip", head.W_skip_ED)
            file.publish(folder / WEIGHTS)
        write_json(folder / SAE_CONFIG, config_of(head))


def _shapes(head: ExportedSae) -> dict[str, tuple[int, ...]]:
    D, E, F = head.width, len(head.b_dec_E), head.num_latents
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, F), "W_dec": (F, E), "b_dec": (E,)}
    shapes |= {name: (F,) for name in VECTORS[head.kind]}
    return shapes if head.W_skip_ED is None else shapes | {"W_skip": (E, D)}


def config_of(sae: ExportedSae) -> dict[str, Any]:
    """Return the content of cfg.json, under SAELens' names."""
    metadata = sae.metadata | {"sae_lens_version": SAELENS_VERSION}
    if sae.trained_as is not None:
        metadata["training_architecture"] = sae.trained_as
    if sae.transcoder and sae.kind not in ("relu", "jumprelu"):
        metadata["read_by"] = OURS_ALONE
    config: dict[str, Any] = {
        "architecture": architecture(sae.kind, sae.transcoder, sae.W_skip_ED is not None),
        "d_in": sae.width,
        "d_sae": sae.num_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not sae.transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if sae.transcoder:
        config["d_out"] = sae.W_dec_FE.shape[1]
    if sae.kind == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    return config


def load_exported(folder: Path) -> ExportedSae:
    """Read a dictionary in the SAELens layout, and check all of it.

    Raises:
        ConfigError: a file, key or tensor is missing, has the wrong shape or NaN in it, is not what was
            written, or means another computation.
    """
    check_files(folder, [folder / SAE_CONFIG, folder / WEIGHTS])
    sae = open_exported(folder)
    check_numbers(folder / WEIGHTS, sae)
    return replace(sae, W_enc_FD=sae.W_enc_FD.contiguous())


def open_exported(folder: Path) -> ExportedSae:
    """Open a dictionary as `load_exported` does, but read from the disk only what is used later.

    Raises:
        ConfigError: see `load_exported`.
    """
    sae = from_saelens(folder, *read_files(folder))
    check_said(folder / SAE_CONFIG, sae)
    return sae


def from_saelens(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> ExportedSae:
    """Return the dictionary that the contents of SAELens' two files describe; its W_enc is a view.

    Args:
        folder: where they were read, for the error.

    Raises:
        ConfigError: see `load_exported`.
    """
    _require(folder, config, "architecture", "d_in", "d_sae")
    if config["architecture"] not in ARCHITECTURES:
        raise ConfigError(
            f"{folder / SAE_CONFIG}: architecture={config['architecture']} is not supported, "
            f"only {', '.join(ARCHITECTURES)}"
        )
    kind, transcoder, skip = ARCHITECTURES[config["architecture"]]
    _require(folder, config, *(["d_out"] if transcoder else []), *(["k"] if kind == "topk" else []))
    required = {
        "apply_b_dec_to_input": not transcoder,
        "normalize_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }
    for key, value in required.items():
        if config.get(key, value) != value:
            raise ConfigError(
                f"{folder / SAE_CONFIG}: {key}={config[key]} is not supported, only {key}={value}"
            )
    D, F = config["d_in"], config["d_sae"]
    D_out = config["d_out"] if transcoder else D
    shapes = {
        "W_enc": [D, F],
        "W_dec": [F, D_out],
        "b_dec": [D_out],
        **{name: [F] for name in VECTORS[kind]},
    }
    check_shapes(folder / WEIGHTS, weights, shapes | ({"W_skip": [D_out, D]} if skip else {}), SAE_CONFIG)
    metadata = config.get("metadata", {})
    if metadata.get("matryoshka_prefixes", [F])[-1] != F:
        raise ConfigError(
            f"{folder / SAE_CONFIG}: metadata.matryoshka_prefixes={metadata['matryoshka_prefixes']} must end "
            f"with d_sae={F}"
        )
    return ExportedSae(
        kind=kind,
        W_enc_FD=weights["W_enc"].T,
        W_dec_FE=weights["W_dec"],
        b_dec_E=weights["b_dec"],
        k=check_k(folder / SAE_CONFIG, config["k"], F) if kind == "topk" else None,
        W_skip_ED=weights["W_skip"] if skip else None,
        transcoder=transcoder,
        trained_as=metadata.get("training_architecture"),
        metadata=metadata,
        **{ours: weights[name] for name, ours in VECTORS[kind].items()},
    )


def _require(folder: Path, config: dict[str, Any], *keys: str) -> None:
    require(folder / SAE_CONFIG, config, *keys)


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the contents of cfg.json and sae_weights.safetensors; weights are read when they are used.

    Raises:
        ConfigError: a file is missing or cannot be read.
    """
    return read_json(folder, SAE_CONFIG, WEIGHTS, SAELENS), read_safetensors(folder, WEIGHTS, SAE_CONFIG)


def export_firing_rates(folder: Path, rate_F: Tensor) -> None:
    """Write each latent's firing rate as SAELens does: sparsity.safetensors with log10(rate + 1e-10)."""
    with listing(folder, [FIRING]):
        write_tensors(folder / FIRING, {"sparsity": (rate_F.detach().cpu().float() + SILENT).log10()})


def load_firing_rates(folder: Path) -> Tensor | None:
    """Return each latent's firing rate [F], float32, exactly 0 for silent ones; None: not measured.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not (folder / FIRING).is_file():
        return None
    check_listed(folder, [FIRING])
    found = read_safetensors(folder, FIRING, SAE_CONFIG)
    require(folder / FIRING, found, "sparsity")
    check_shapes(folder / FIRING, found, {"sparsity": [len(found["sparsity"])]}, FIRING)
    log_F = found["sparsity"].double()
    return torch.where(log_F < math.log10(2 * SILENT), 0.0, 10**log_F - SILENT).float()
