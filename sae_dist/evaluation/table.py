"""Results as printed tables: the summary of a run, and eval.json with its costly parts."""

from typing import Any

from sae_dist.core.text import GIB
from sae_dist.metrics.evaluated import MEASURED

RESULTS = (
    (
        "FVU, held out",
        "fvu",
        ".4f",
        "squared error over squared deviation from the mean; 0: perfect, 1: no better than the mean",
    ),
    (
        "  PCA, as many components as active latents",
        "fvu_pca",
        ".4f",
        "principal components fitted on the evaluation set itself, so favoured",
    ),
    (
        "  best linear map of the input",
        "fvu_linear",
        ".4f",
        "fitted on the evaluation set itself, so favoured",
    ),
    ("  untrained dictionary", "fvu_untrained", ".4f", "random unit rows: where training began"),
    ("  without high-norm tokens", "fvu_without_high_norm", ".4f", ""),
    ("  on the second corpus", "fvu_second_corpus", ".4f", ""),
    ("  median token, 95th and 99th percentile", "fvu_quantiles", "quantiles", ""),
    ("L0", "l0", ".1f", "latents that fire on a token, on average"),
    ("  true features per row", "true_l0", ".1f", "of the known features"),
    ("dead latents", "dead_fraction", ".2%", "silent on every held-out token"),
    (
        "cosine of true features with decoder rows, one to one",
        "matching_score",
        ".4f",
        "mean over true features; 1: all were found",
    ),
    ("  true features above 0.9", "matched_share", ".2%", ""),
    ("  nearest row of each feature (MMCS)", "mmcs", ".4f", ""),
    ("  nearest feature of each row", "mmcs_latents", ".4f", ""),
    ("F1 of which features fire", "firing_f1", ".4f", ""),
    ("explained variance, mean over dimensions", "explained_variance", ".4f", ""),
    ("cosine of activation and reconstruction", "cosine", ".4f", "mean over tokens; ignores length"),
    ("norm ratio, reconstruction / activation", "l2_ratio", ".4f", ""),
    ("  relative reconstruction bias", "relative_bias", ".4f", ""),
    ("latents that fire on more than 1 % of tokens", "dense_fraction_1", ".2%", ""),
    ("  on more than 10 %", "dense_fraction_10", ".2%", ""),
    (
        "cross-entropy, clean",
        "ce_clean",
        ".4f",
        "nats per next token, of the language model left alone",
    ),
    ("  reconstruction spliced in", "ce_sae", ".4f", "nats per next token"),
    (
        "  mean-ablated",
        "ce_mean_ablated",
        ".4f",
        "nats per next token, the mean in place of every activation",
    ),
    ("  zero-ablated", "ce_zero_ablated", ".4f", "nats per next token"),
    (
        "CE recovered, against the mean",
        "ce_recovered",
        ".2%",
        "share of the loss by mean ablation that the reconstruction keeps; 100 %: all",
    ),
    (
        "CE recovered, against zero",
        "ce_recovered_zero",
        ".2%",
        "the same against zeros, an easier comparison",
    ),
    ("KL from the clean next token, nats", "kl", ".4f", ""),
    ("  mean-ablated", "kl_mean_ablated", ".4f", ""),
    (
        "cosine of the final embedding",
        "embedding_cosine",
        ".4f",
        "of the model's own output, with and without the reconstruction",
    ),
    ("held-out tokens", "eval_tokens", ",d", "activations of documents that training never saw"),
    ("trained tokens", "tokens", ",d", "activations trained on"),
    ("steps", "steps", ",d", ""),
)
"""Label (indented below the line that it qualifies), key in summary.json, format, meaning."""
SPEED = (
    ("tokens per second", "tokens_per_second", ",.0f", ""),
    ("peak memory of a process, GiB", "peak_memory_bytes", "GiB", ""),
    ("processes", "world_size", "d", ""),
)
"""Lines like RESULTS, about the training."""
EXPLAINED = {
    "fvu": "FVU, held out",
    "fvu_pca": "PCA",
    "fvu_untrained": "untrained dictionary",
    "dead_fraction": "dead latents",
    "ce_recovered": "CE recovered",
}
"""Numbers whose absence is reported, by key, with the label of that line."""
SHORT = (
    "a short evaluation, for a first look; sae-dist eval RUN eval.tokens=500k eval.ce_tokens=64k is the whole"
)
COSTLY = ("fvu_second_corpus", "redundancy", "probes", "absorption", "controls")


def format_evaluation(result: dict[str, Any]) -> str:
    """Return the table of `sae-dist eval`, and below it the reason of each missing part.

    Args:
        result: what `evaluate_folder` returned.
    """
    lines = [format_table(result)]
    if found := result.get("redundancy"):
        lines.append(
            f"decoder rows: largest cosine with another {found['mean']:.3f} on average, "
            f"above 0.7 {found['above_0.7']:.2%}, above 0.9 {found['above_0.9']:.2%}"
        )
    if found := result.get("probes"):
        lines += _probes(found)
    if found := result.get("absorption"):
        lines.append(
            f"absorption, first letters: {found['rate']:.2%} of words, {found['latents']:.1f} latents per "
            f"letter, {len(found['letters'])} letters; F1 of the probe {found['probe_f1']:.2f}, of those "
            f"latents {found['latents_f1']:.2f}"
        )
    if found := result.get("controls"):
        arms = {name: each for name, each in found.items() if isinstance(each, dict)}
        lines.append("FVU " + ", ".join(f"{name} {each['fvu']:.3f}" for name, each in arms.items()))
        if found.get("random_llm_reason"):
            lines.append(f"random LM: not measured ({found['random_llm_reason']})")
    for key in COSTLY:
        if result.get(key) is None:
            lines.append(f"{key}: not measured ({result[f'{key}_reason']})")
    return "\n".join(lines)


def format_table(summary: dict[str, Any]) -> str:
    """Return a line for each number that summary.json has, and below them the reasons of missing ones."""
    rows = [
        (label, _format(summary[key], form))
        for label, key, form, _ in (*RESULTS, *SPEED)
        if summary.get(key) is not None
    ]
    wide = max((len(label) for label, _ in rows), default=0)
    tall = max((len(value) for _, value in rows), default=0)
    lines = [f"{label:<{wide}}  {value:>{tall}}" for label, value in rows]
    lines += [f"{EXPLAINED[key]}: {why}" for key, why in missing(summary).items()]
    lines += [f"caution: {each}" for each in summary.get("cautions", [])]
    if summary.get("eval_extent") == "short":
        lines.append(SHORT)
    return "\n".join(lines)


def missing(summary: dict[str, Any]) -> dict[str, str]:
    """Return why numbers of EXPLAINED were not measured, by key, as far as summary.json has a reason."""
    found = {}
    for metric in MEASURED:
        reason = summary.get(metric.reason)
        if metric.key in EXPLAINED and summary.get(metric.key) is None and reason:
            found[metric.key] = f"not measured ({reason})"
    silent = summary.get("silent_fraction")
    if "dead_fraction" in found and silent is not None:
        found["dead_fraction"] += f"; silent on these: {silent:.2%}"
    return found


def quantiles(value: dict[str, float]) -> str:
    """Return median, 95th and 99th percentile of `fvu_quantiles` as text."""
    return " ".join(f"{value[key]:.3f}" for key in ("0.5", "0.95", "0.99"))


def _format(value: Any, form: str) -> str:
    if form == "quantiles":
        return quantiles(value)
    return f"{value / GIB:.2f}" if form == "GiB" else f"{value:{form}}"


def _probes(found: dict[str, Any]) -> list[str]:
    """Return a line per question with the AUC of each arm."""
    if found["mean"] is None:
        return [f"probes on {found['source']}: not measured (every class has too few rows)"]
    arms = list(found["mean"])
    heads = ["activation" if arm == "raw" else arm for arm in arms]
    rows = [["AUC on " + found["source"], *heads]]
    for name, each in found["tasks"].items():
        if "reason" in each:
            rows.append([f"  {name}", each["reason"]])
        else:
            rows.append([f"  {name}", *(f"{each[arm]['auc']:.3f}" for arm in arms)])
    rows.append(["  mean", *(f"{found['mean'][arm]:.3f}" for arm in arms)])
    wide = max(len(row[0]) for row in rows)
    return ["  ".join([row[0].ljust(wide), *(cell.rjust(10) for cell in row[1:])]) for row in rows]
