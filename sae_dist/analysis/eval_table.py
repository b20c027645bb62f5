"""eval.json as a table for people: the summary's lines, and those of the costly parts."""

from typing import Any

from sae_dist.analysis.table import format_table

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
