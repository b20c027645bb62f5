"""The reader of dictionaries in SAELens' layout that SAELens or others wrote.

It reads more than `load_exported` does: encoders that do not subtract b_dec, TopK over codes times the norm
of their decoder row, log_threshold, other dtypes, and cfg.json as it was before SAELens 6.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import SAE_CONFIG, from_saelens, read_files

METADATA = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "hook_name",
    "hook_name_out",
    "hf_hook_name",
    "hf_hook_name_out",
    "context_size",
    "prepend_bos",
    "exclude_special_tokens",
    "dataset_path",
    "neuronpedia_id",
)
"""Keys of cfg.json's metadata, which were at its top level before SAELens 6."""


def load_published(folder: Path) -> ExportedSae:
    """Read a dictionary in the SAELens layout, whoever wrote it, as float32.

    Raises:
        ConfigError: a file, key or tensor is missing, has the wrong shape, or means another computation.
    """
    config, weights = read_files(folder)
    weights = {name: each.float() for name, each in weights.items()}
    if "metadata" not in config:
        config = _before_6(folder, config)
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    transcoder = str(config.get("architecture")).endswith("transcoder")
    if config.get("apply_b_dec_to_input") is False and not transcoder:
        config = config | {"apply_b_dec_to_input": True}
        _subtracting_b_dec(weights)
    if config.get("rescale_acts_by_decoder_norm") and config.get("architecture") == "topk":
        config = config | {"rescale_acts_by_decoder_norm": False}
        _with_norms_folded(weights)
    return from_saelens(folder, config, weights)


def _before_6(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return a cfg.json from before SAELens 6 with today's keys."""
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if config.get("finetuning_scaling_factor"):
        raise ConfigError(
            f"{folder / SAE_CONFIG}: finetuning_scaling_factor=true is not supported, only false"
        )
    found = {"architecture": "standard", "apply_b_dec_to_input": True} | config
    if activation == "topk":
        found |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k")}
    elif activation != "relu" and found["architecture"] == "standard":
        raise ConfigError(
            f"{folder / SAE_CONFIG}: activation_fn={activation} is not supported, only relu and topk"
        )
    if found.get("normalize_activations") in (None, False):
        found["normalize_activations"] = "none"
    renamed = config | ({"hook_name": config["hook_point"]} if "hook_point" in config else {})
    return found | {"metadata": {key: renamed[key] for key in METADATA if renamed.get(key) is not None}}


def _subtracting_b_dec(weights: dict[str, Tensor]) -> None:
    """Change the biases of W_enc x + b to those of W_enc (x - b_dec) + b', in place."""
    if not {"W_enc", "b_dec"} <= set(weights) or weights["W_enc"].shape[0] != len(weights["b_dec"]):
        return  # from_saelens names what is missing or misshapen
    moved_F = weights["b_dec"] @ weights["W_enc"]
    for name in ("b_enc", "b_gate", "b_mag"):
        if name in weights:
            slope = weights["r_mag"].exp() if name == "b_mag" else 1.0
            weights[name] = weights[name] + slope * moved_F


def _with_norms_folded(weights: dict[str, Tensor]) -> None:
    """Change weights whose codes are ranked times their decoder row's norm to unit rows, in place."""
    if not {"W_enc", "b_enc", "W_dec"} <= set(weights):
        return
    norm_F = weights["W_dec"].norm(dim=1)
    weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norm_F, weights["b_enc"] * norm_F
    weights["W_dec"] = weights["W_dec"] / norm_F[:, None].clamp(min=1e-30)
