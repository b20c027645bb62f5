"""The reader of dictionaries in SAELens' layout that SAELens or others wrote.

It reads more than `load_exported` does: encoders that do not subtract b_dec, TopK over codes times the norm
of their decoder row, log_threshold, activations times a factor, other dtypes, training checkpoints, and
cfg.json as it was before SAELens 6.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.export.exported import ExportedSae
from sae_dist.export.keys import BEFORE_SAELENS_6, COUNT, NUMBER, ORIGIN, checked
from sae_dist.export.reading import check_k, floats, json_object, require
from sae_dist.export.saelens import SAE_CONFIG, WEIGHTS, from_saelens, read_files

KEPT = (*ORIGIN, "exclude_special_tokens")
"""Keys of cfg.json's metadata, which were at its top level before SAELens 6."""
SCALER = "activation_scaler.json"
"""The file in which SAELens' training checkpoints keep the factor of their activations."""
TRAINING = {"batchtopk": "batchtopk", "matryoshka_batchtopk": "matryoshka"}
"""Architectures that only training checkpoints have -> the kinds here; both are used as jumprelu."""


def load_published(folder: Path) -> ExportedSae:
    """Read a dictionary in the SAELens layout, whoever wrote it, as float32.

    Raises:
        ConfigError: a file, key or tensor is missing, has the wrong shape, or means another computation.
    """
    config, weights = read_files(folder)
    weights = floats(weights)
    if "metadata" not in config:
        config = _before_6(folder, checked(folder / SAE_CONFIG, config, BEFORE_SAELENS_6))
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    transcoder = config.get("architecture", "").endswith("transcoder")
    if config.get("normalize_activations") == "expected_average_only_in":
        config = config | {"normalize_activations": "none"}
        _with_scale_folded(weights, _factor(folder), bool(config.get("rescale_acts_by_decoder_norm")))
    # Ranked and compared times the norm of their decoder row.
    if config.get("rescale_acts_by_decoder_norm") and config.get("architecture") in ("topk", *TRAINING):
        config = config | {"rescale_acts_by_decoder_norm": False}
        _with_norms_folded(weights)
    if config.get("architecture") in TRAINING:
        config = _of_a_checkpoint(folder, config, weights)
    if config.get("apply_b_dec_to_input") is False and not transcoder:
        config = config | {"apply_b_dec_to_input": True}
        _subtracting_b_dec(weights)
    config = config | {"metadata": _with_k(config["metadata"])}
    return from_saelens(folder, config, weights)


def _with_k(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata with the k of training, where SAELens keeps it among the details of training."""
    k = metadata.get("training_architecture_details", {}).get("k")
    return {"training_k": int(k)} | metadata if COUNT.holds(k) else metadata


def _of_a_checkpoint(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the config of a training checkpoint as SAELens saves it at the end, and change its weights so.

    Raises:
        ConfigError: it has no threshold, or no k.
    """
    path = folder / SAE_CONFIG
    require(path, config, "k", "d_sae")
    F = config["d_sae"]
    k = check_k(path, config["k"], F)
    if "topk_threshold" not in weights or weights["topk_threshold"].numel() != 1:
        raise ConfigError(f"{folder / WEIGHTS} has no tensor topk_threshold of one number")
    weights["threshold"] = weights.pop("topk_threshold").reshape(1).expand(F).clone()
    metadata: dict[str, Any] = {"training_architecture": TRAINING[config["architecture"]], "training_k": k}
    if "matryoshka_widths" in config:
        widths = [each for each in config["matryoshka_widths"] if each < F]
        metadata["matryoshka_prefixes"] = [*widths, F]
    return config | {"architecture": "jumprelu", "metadata": config["metadata"] | metadata}


def _factor(folder: Path) -> float:
    """Return the factor that activations were multiplied with in training.

    Raises:
        ConfigError: the file with it is missing, or not readable.
    """
    path = folder / SCALER
    if not path.is_file():
        raise ConfigError(
            f"{folder / SAE_CONFIG}: normalize_activations=expected_average_only_in needs the factor of the "
            f"activations, which training checkpoints have in {SCALER}; copy that here, or call SAELens' "
            "sae.fold_activation_norm_scaling_factor(factor) and save the dictionary again"
        )
    found = checked(path, json_object(path), {"scaling_factor": NUMBER})
    require(path, found, "scaling_factor")
    return float(found["scaling_factor"])


def _with_scale_folded(weights: dict[str, Tensor], factor: float, times_norms: bool) -> None:
    """Change weights for activations times a factor to those for raw ones, in place; codes stay.

    Args:
        times_norms: codes are compared times the norm of their decoder row, which changes.
    """
    powers = {"W_enc": 1, "W_dec": -1, "b_dec": -1} | ({"topk_threshold": -1} if times_norms else {})
    for name, power in powers.items():
        if name in weights:
            weights[name] = weights[name] * factor**power


def _before_6(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return a cfg.json from before SAELens 6 with today's keys.

    Raises:
        ConfigError: it means another computation, or has no k.
    """
    path = folder / SAE_CONFIG
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if config.get("finetuning_scaling_factor"):
        raise ConfigError(f"{path}: finetuning_scaling_factor=true is not supported, only false")
    found = {"architecture": "standard", "apply_b_dec_to_input": True} | config
    if activation == "topk":
        own = config.get("activation_fn_kwargs", {})
        if "k" not in own and "k" not in config:
            raise ConfigError(f"{path} has no key activation_fn_kwargs.k; export the dictionary again")
        found |= {"architecture": "topk", "k": own.get("k", config.get("k"))}
    elif activation != "relu" and found["architecture"] == "standard":
        raise ConfigError(f"{path}: activation_fn={activation} is not supported, only relu and topk")
    given = found.get("normalize_activations", False)
    if isinstance(given, bool):
        found["normalize_activations"] = "expected_average_only_in" if given else "none"
    renamed = config | ({"hook_name": config["hook_point"]} if "hook_point" in config else {})
    return found | {"metadata": {key: renamed[key] for key in KEPT if key in renamed}}


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
