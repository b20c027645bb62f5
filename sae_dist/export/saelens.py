"""The SAELens layout: sae_weights.safetensors and cfg.json, as `SAE.load_from_disk` reads them."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.export.exported import ExportedSae

# The SAELens release this layout was checked with; readers take files below 6.0 for another layout.
SAELENS_VERSION = "6.54.12"
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"


def export_saelens(folder: Path, sae: ExportedSae) -> None:
    """Write the dictionary: float32, W_enc [d_in, d_sae], W_dec [d_sae, d_in].

    Each file is complete or absent. `sae.metadata` goes into cfg.json's metadata (JSON-able; the keys that
    SAELens knows are model_name, hook_name, hf_hook_name, context_size, prepend_bos, dataset_path).

    Raises:
        SaeDistError: the disk did not take the weights.
    """
    weights = {"W_enc": sae.W_enc_FD.T, "b_enc": sae.b_enc_F, "W_dec": sae.W_dec_FD, "b_dec": sae.b_dec_D}
    config: dict[str, Any] = {
        "architecture": "topk",
        "d_in": sae.width,
        "d_sae": sae.num_latents,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": sae.metadata | {"sae_lens_version": SAELENS_VERSION},
    }
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


def load_exported(folder: Path) -> ExportedSae:
    """Read a TopK dictionary in the SAELens layout.

    Raises:
        ConfigError: a file, key or tensor is missing, has the wrong shape, or means another
            computation than ours.
    """
    config, weights = _read(folder)
    for key in ("architecture", "d_in", "d_sae", "k"):
        if key not in config:
            raise ConfigError(f"{folder / CONFIG} has no key {key}; export the dictionary again")
    required = {
        "architecture": "topk",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }
    for key, value in required.items():
        if config.get(key, value) != value:
            raise ConfigError(f"{folder / CONFIG}: {key}={config[key]} is not supported, only {key}={value}")
    D, F = config["d_in"], config["d_sae"]
    for name, shape in {"W_enc": [D, F], "b_enc": [F], "W_dec": [F, D], "b_dec": [D]}.items():
        if name not in weights:
            raise ConfigError(f"{folder / WEIGHTS} has no tensor {name}; it has {', '.join(sorted(weights))}")
        if list(weights[name].shape) != shape:
            raise ConfigError(
                f"{folder / WEIGHTS}: {name} has shape {list(weights[name].shape)}, {CONFIG} says {shape}"
            )
    return ExportedSae(
        W_enc_FD=weights["W_enc"].T.contiguous(),
        b_enc_F=weights["b_enc"],
        W_dec_FD=weights["W_dec"],
        b_dec_D=weights["b_dec"],
        k=config["k"],
        metadata=config.get("metadata", {}),
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
