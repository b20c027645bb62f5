"""The SAELens layout: sae_weights.safetensors and cfg.json, as `SAE.load_from_disk` reads them.

SAELens has classes for every autoencoder, and for transcoders with ReLU or JumpReLU, with and without skip.
Transcoders of other kinds are written in the same way, as `topk_transcoder`, `topk_skip_transcoder`,
`gated_transcoder` and `gated_skip_transcoder`; those only `load_exported` reads, and their metadata says so.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.export.exported import ExportedSae

# The SAELens release this layout was checked with; readers take files below 6.0 for another layout.
SAELENS_VERSION = "6.54.12"
WEIGHTS, CONFIG, FIRING = "sae_weights.safetensors", "cfg.json", "sparsity.safetensors"
SILENT = 1e-10
OWN_TENSORS = {
    "topk": {"b_enc": "b_enc_F"},
    "relu": {"b_enc": "b_enc_F"},
    "jumprelu": {"b_enc": "b_enc_F", "threshold": "threshold_F"},
    "gated": {"b_gate": "b_gate_F", "b_mag": "b_mag_F", "r_mag": "r_mag_F"},
}
"""Kind -> SAELens' names of its tensors [F] -> our fields."""
OURS_ALONE = "no class of SAELens computes this; sae_dist.export.saelens.load_exported reads it"


def architecture(kind: str, transcoder: bool, skip: bool) -> str:
    """SAELens' word for a kind: `standard` is relu, and the transcoder without another word too."""
    if not transcoder:
        return "standard" if kind == "relu" else kind
    return f"{'' if kind == 'relu' else kind + '_'}{'skip_' if skip else ''}transcoder"


ARCHITECTURES = {
    architecture(kind, transcoder, skip): (kind, transcoder, skip)
    for kind in OWN_TENSORS
    for transcoder, skip in ((False, False), (True, False), (True, True))
}


def export_saelens(folder: Path, sae: ExportedSae) -> None:
    """Write the dictionary: float32, W_enc [d_in, d_sae], W_dec [d_sae, d_out].

    Each file is complete or absent. `sae.metadata` goes into cfg.json's metadata (JSON-able; the keys that
    SAELens knows are model_name, hook_name, hook_name_out, hf_hook_name, context_size, prepend_bos,
    dataset_path, training_architecture).

    Raises:
        SaeDistError: the disk did not take the weights.
    """
    weights = {"W_enc": sae.W_enc_FD.T, "W_dec": sae.W_dec_FE, "b_dec": sae.b_dec_E}
    weights |= {name: getattr(sae, ours) for name, ours in OWN_TENSORS[sae.kind].items()}
    if sae.W_skip_ED is not None:
        weights["W_skip"] = sae.W_skip_ED
    config = _config(sae)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {n: t.detach().to("cpu", torch.float32).contiguous() for n, t in weights.items()}
    temporary = folder / f".{WEIGHTS}.tmp"
    try:
        save_file(plain, temporary)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise SaeDistError(
            f"cannot write {folder / WEIGHTS}: {error}; make room and run: sae-dist export {folder.parent}"
        ) from None
    (folder / f".{CONFIG}.tmp").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, CONFIG):
        os.replace(folder / f".{name}.tmp", folder / name)


def _config(sae: ExportedSae) -> dict[str, Any]:
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
    """Read a dictionary in the SAELens layout.

    Raises:
        ConfigError: a file, key or tensor is missing, has the wrong shape, or means another
            computation than ours.
    """
    config, weights = _read(folder)
    _require(folder, config, "architecture", "d_in", "d_sae")
    if config["architecture"] not in ARCHITECTURES:
        raise ConfigError(
            f"{folder / CONFIG}: architecture={config['architecture']} is not supported, "
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
            raise ConfigError(f"{folder / CONFIG}: {key}={config[key]} is not supported, only {key}={value}")
    D, F = config["d_in"], config["d_sae"]
    D_out = config["d_out"] if transcoder else D
    shapes = {
        "W_enc": [D, F],
        "W_dec": [F, D_out],
        "b_dec": [D_out],
        **{name: [F] for name in OWN_TENSORS[kind]},
    }
    _check_shapes(folder, weights, shapes | ({"W_skip": [D_out, D]} if skip else {}))
    metadata = config.get("metadata", {})
    return ExportedSae(
        kind=kind,
        W_enc_FD=weights["W_enc"].T.contiguous(),
        W_dec_FE=weights["W_dec"],
        b_dec_E=weights["b_dec"],
        k=config["k"] if kind == "topk" else None,
        W_skip_ED=weights["W_skip"] if skip else None,
        transcoder=transcoder,
        trained_as=metadata.get("training_architecture"),
        metadata=metadata,
        **{ours: weights[name] for name, ours in OWN_TENSORS[kind].items()},
    )


def _require(folder: Path, config: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if key not in config:
            raise ConfigError(f"{folder / CONFIG} has no key {key}; export the dictionary again")


def _check_shapes(folder: Path, weights: dict[str, torch.Tensor], shapes: dict[str, list[int]]) -> None:
    for name, shape in shapes.items():
        if name not in weights:
            raise ConfigError(f"{folder / WEIGHTS} has no tensor {name}; it has {', '.join(sorted(weights))}")
        if list(weights[name].shape) != shape:
            raise ConfigError(
                f"{folder / WEIGHTS}: {name} has shape {list(weights[name].shape)}, {CONFIG} says {shape}"
            )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name} does not exist; give a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG} is not JSON ({error}); export the dictionary again") from None
    try:
        return config, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ConfigError(
            f"{folder / WEIGHTS} is not a safetensors file ({error}); export it again"
        ) from None


def export_firing_rates(folder: Path, rate_F: Tensor) -> None:
    """Write how often each latent fires, as SAELens does: sparsity.safetensors, log10(rate + 1e-10)."""
    temporary = folder / f".{FIRING}.tmp"
    save_file({"sparsity": (rate_F.detach().cpu().float() + SILENT).log10()}, temporary)
    os.replace(temporary, folder / FIRING)


def load_firing_rates(folder: Path) -> Tensor | None:
    """How often each latent fires [F], float32, exactly 0 for silent ones; None: it was not measured."""
    if not (folder / FIRING).is_file():
        return None
    log_F = load_file(folder / FIRING)["sparsity"].double()
    return torch.where(log_F < math.log10(2 * SILENT), 0.0, 10**log_F - SILENT).float()
