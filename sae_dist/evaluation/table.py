"""Results as tables for people: the summary of a run, and eval.json with its costly parts."""

from typing import Any

from sae_dist.core.text import GIB

COSTLY = ("fvu_second_corpus", "redundancy", "probes", "absorption", "controls")


def format_evaluation(result: dict[str, Any]) -> str:
    """The table; below it, why a number is missing.

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
            lines.append(f"random LM: none, {found['random_llm_reason']}")
    for key in COSTLY:
        if result.get(key) is None:
            lines.append(f"{key}: none, {result[f'{key}_reason']}")
    return "\n".join(lines)


def _probes(found: dict[str, Any]) -> list[str]:
    """A line per question, AUC of each arm."""
    if found["mean"] is None:
        return [f"probes on {found['source']}: none, every class has too few rows"]
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


LINES = (
    ("FVU, held out", "fvu", ".4f"),
    ("  PCA, as many components as active latents", "fvu_pca", ".4f"),
    ("  best linear map of the input", "fvu_linear", ".4f"),
    ("  untrained dictionary", "fvu_untrained", ".4f"),
    ("  tokens of ordinary length alone", "fvu_without_high_norm", ".4f"),
    ("  on the second corpus", "fvu_second_corpus", ".4f"),
    ("  median token, 95th and 99th percentile", "fvu_quantiles", "quantiles"),
    ("L0", "l0", ".1f"),
    ("  true features per row", "true_l0", ".1f"),
    ("dead latents", "dead_fraction", ".2%"),
    ("cosine of true features with decoder rows, one to one", "matching_score", ".4f"),
    ("  true features above 0.9", "matched_share", ".2%"),
    ("  nearest row of each feature (MMCS)", "mmcs", ".4f"),
    ("  nearest feature of each row", "mmcs_latents", ".4f"),
    ("F1 of which features fire", "firing_f1", ".4f"),
    ("explained variance, mean over dimensions", "explained_variance", ".4f"),
    ("cosine of activation and reconstruction", "cosine", ".4f"),
    ("length of the reconstruction, of the activation's", "l2_ratio", ".4f"),
    ("  relative reconstruction bias", "relative_bias", ".4f"),
    ("latents that fire on more than 1 % of tokens", "dense_fraction_1", ".2%"),
    ("  on more than 10 %", "dense_fraction_10", ".2%"),
    ("cross-entropy, clean", "ce_clean", ".4f"),
    ("  reconstruction spliced in", "ce_sae", ".4f"),
    ("  mean-ablated", "ce_mean_ablated", ".4f"),
    ("  zero-ablated", "ce_zero_ablated", ".4f"),
    ("CE recovered, against the mean", "ce_recovered", ".2%"),
    ("CE recovered, against zero", "ce_recovered_zero", ".2%"),
    ("KL from the clean next token, nats", "kl", ".4f"),
    ("  mean-ablated", "kl_mean_ablated", ".4f"),
    ("cosine of the final embedding", "embedding_cosine", ".4f"),
    ("held-out tokens", "eval_tokens", ",d"),
    ("trained tokens", "tokens", ",d"),
    ("steps", "steps", ",d"),
    ("tokens per second", "tokens_per_second", ",.0f"),
    ("peak memory of a process, GiB", "peak_memory_bytes", "GiB"),
    ("processes", "world_size", "d"),
)
REASONS = (
    ("FVU, held out", "fvu", "fvu_reason"),
    ("PCA", "fvu_pca", "fvu_pca_reason"),
    ("untrained dictionary", "fvu_untrained", "fvu_untrained_reason"),
    ("dead latents", "dead_fraction", "dead_reason"),
    ("CE recovered", "ce_recovered", "ce_reason"),
)


def format_table(summary: dict[str, Any]) -> str:
    """One line per number that summary.json has; below them, why a number is missing."""
    rows = [
        (label, _format(summary[key], form)) for label, key, form in LINES if summary.get(key) is not None
    ]
    wide = max((len(label) for label, _ in rows), default=0)
    tall = max((len(value) for _, value in rows), default=0)
    lines = [f"{label:<{wide}}  {value:>{tall}}" for label, value in rows]
    lines += [
        f"{label}: none, {summary[reason]}"
        for label, key, reason in REASONS
        if summary.get(key) is None and summary.get(reason)
    ]
    return "\n".join(lines)


def quantiles(value: dict[str, float]) -> str:
    """Median, 95th and 99th percentile of `fvu_quantiles`."""
    return " ".join(f"{value[key]:.3f}" for key in ("0.5", "0.95", "0.99"))


def _format(value: Any, form: str) -> str:
    if form == "quantiles":
        return quantiles(value)
    return f"{value / GIB:.2f}" if form == "GiB" else f"{value:{form}}"
