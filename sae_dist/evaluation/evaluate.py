"""`sae-dist eval`: a run's export, evaluated as its config and the keys of `eval` say.

README.md in this folder defines the numbers.
"""

import json
from pathlib import Path
from typing import Any

import torch

from sae_dist.config.grid import single
from sae_dist.config.run import Resolved, Single
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_json
from sae_dist.core.run_folder import EVALUATION, EXPORT, PLOTS
from sae_dist.core.text import gib
from sae_dist.evaluation.costly import check_asked, evaluate_costly
from sae_dist.evaluation.plots import plot_evaluation
from sae_dist.evaluation.quality.cross_entropy import KEYS as CE_KEYS
from sae_dist.evaluation.subject import Subject
from sae_dist.evaluation.summary import device_of, encode_of, evaluate_runs, half_the_cores
from sae_dist.export.saelens import SAE_CONFIG, WEIGHTS, load_exported
from sae_dist.llm.fit import USABLE, memory_bytes

TRAINED = {"step": "sae_dist_step", "tokens": "training_tokens"}
"""How far the run was, by its key in the export's metadata."""
FROM_SUMMARY = (
    "eval_tokens",
    "eval_excluded",
    "fvu",
    "fvu_pca",
    "fvu_linear",
    "fvu_untrained",
    "fvu_quantiles",
    "fvu_without_high_norm",
    "high_norm_share",
    "explained_variance",
    "cosine",
    "l0",
    "dead_fraction",
    "dead_tokens",
    "silent_fraction",
    "dense_fraction_1",
    "dense_fraction_10",
    "l2_ratio",
    "relative_bias",
    *CE_KEYS,
    "ce_tokens",
    "embedding_cosine",
    "density",
)
"""Numbers that the end of training computes too, in the order of eval.json."""
RECOVERY = tuple(
    "true_l0 matching_score matched_share mmcs mmcs_latents firing_precision firing_recall firing_f1".split()
)
"""Of runs on synthetic activations: see `evaluation.quality.recovery`."""
WHY_NOT = {
    "dead_fraction": "dead_reason",
    "fvu_pca": "fvu_pca_reason",
    "fvu_untrained": "fvu_untrained_reason",
    "fvu_without_high_norm": "fvu_without_high_norm_reason",
    "l2_ratio": "l2_ratio_reason",
    "relative_bias": "relative_bias_reason",
    **{key: "ce_reason" for key in FROM_SUMMARY if key.startswith(("ce_", "kl"))},
}
"""Where summary.json says why a number is missing; of the others, `fvu_reason`."""
ELSEWHERE = {"fvu_linear": "of transcoders, with eval.baselines", "embedding_cosine": "of encoders"}


def evaluate_folder(folder: Path, asked: Resolved, full: bool) -> dict[str, Any]:
    """Evaluate `folder`/export; write eval.json, its plots, and summary.json as the end of training does.

    Args:
        asked: the run's config, with the keys of `eval` as they were asked for.
        full: compute the costly numbers too.

    Returns:
        What eval.json holds, and what only summary.json does.

    Raises:
        ConfigError: the folder has no export, what a key names is not there, or the dictionary does not fit.
        DataError: there are no held-out activations.
    """
    cfg = single(asked, folder)
    if not (folder / EXPORT / SAE_CONFIG).exists():
        raise ConfigError(
            f"{folder} has no export yet; write one of its newest checkpoint with sae-dist export {folder}, "
            f"or finish the run with sae-dist resume {folder}"
        )
    device = device_of(cfg)
    check_fits(folder / EXPORT, cfg, device)
    subject = Subject(cfg, folder, load_exported(folder / EXPORT), encode_of(cfg, device), device)
    with torch.no_grad():
        check_asked(subject)
    summary = evaluate_runs([folder], [cfg])[0]
    subject.sae = subject.sae.to(device)
    with torch.no_grad(), half_the_cores():
        costly = evaluate_costly(subject, full)
    exported = json.loads((folder / EXPORT / SAE_CONFIG).read_text(encoding="utf-8"))["metadata"]
    result: dict[str, Any] = {"run": folder.absolute().name, "full": full}
    result |= {key: exported[there] for key, there in TRAINED.items() if there in exported}
    result |= {key: summary[key] for key in RECOVERY if key in summary}
    for key in FROM_SUMMARY:
        result[key] = summary.get(key)
        if result[key] is None:
            why = summary.get(WHY_NOT.get(key, "fvu_reason"))
            result[f"{key}_reason"] = why or ELSEWHERE.get(key) or "eval.tokens=0"
    result |= costly
    write_json(folder / EVALUATION, result)
    plot_evaluation(result, folder / PLOTS)
    return summary | result


def check_fits(export: Path, cfg: Single, device: torch.device) -> None:
    """Whether this process can hold the dictionary: whole, and once more for the untrained one.

    Raises:
        ConfigError: it cannot.
    """
    weights = export / WEIGHTS
    if not weights.is_file():
        return  # Which of its files an export lacks is said where it is read.
    untrained = cfg.eval.baselines and cfg.sae.kind == "topk" and cfg.target_hook is None
    needed, memory = weights.stat().st_size * (2 if untrained else 1), memory_bytes(device.type)
    if needed > USABLE * memory:
        raise ConfigError(
            f"{export} takes {gib(needed)} and there are {gib(memory)}: one process "
            "holds the dictionary" + ("; eval.baselines=false halves that" if untrained else "")
        )
