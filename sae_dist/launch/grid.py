"""The end of a grid: every dictionary exported and evaluated, one table, and what one stream saved."""

import os
from pathlib import Path
from typing import Any

from sae_dist.config.counts import format_count
from sae_dist.config.grid import Pair, member_folders, members, varied
from sae_dist.config.run import Resolved
from sae_dist.config.trust import executing
from sae_dist.core.errors import NumericsError
from sae_dist.core.files import write_json
from sae_dist.core.run_folder import DIVERGED, EXPORT, FINISHED, SUMMARY, TRAINED, read_summary, status
from sae_dist.core.text import columns, print_line

EVALUATED_BYTES = 4 << 30
"""Of exports at once: each needs about twice its size, as the untrained dictionary stands beside it."""
COLUMNS = (
    ("FVU", "fvu", ".4f"),
    ("L0", "l0", ".1f"),
    ("dead", "dead_fraction", ".2%"),
    ("CE recovered", "ce_recovered", ".2%"),
    ("embedding cosine", "embedding_cosine", ".4f"),
    ("lr", "lr", ".2e"),
    ("seconds", "dictionary_seconds", ".0f"),
)


def finish_grid(cfg: Resolved, folder: Path) -> str:
    """Export and evaluate what was trained to its end, write the run's summary.json, return its table.

    Raises:
        NumericsError: every dictionary was given up.
    """
    from sae_dist.evaluation.seeds import compare_seeds
    from sae_dist.evaluation.summary import evaluate_runs
    from sae_dist.train.export import export_run

    granted = executing(cfg)
    by_place: dict[Pair, list[Path]] = {}
    for member, each in zip(members(cfg), member_folders(cfg, folder), strict=True):
        if status(each) == TRAINED:
            export_run(each, granted=granted)
            by_place.setdefault((member.hook, member.target_hook), []).append(each)
    number = sum(map(len, by_place.values()))
    if number:
        extent = f"on {format_count(cfg.eval.tokens)} held-out activations" if cfg.eval.tokens else "(off)"
        print_line(
            f"trained; {number} exports written below {os.path.relpath(folder)}; evaluation {extent}; "
            "Ctrl-C is safe, sae-dist resume goes on"
        )
    for folders in by_place.values():
        for together in batches(folders):
            evaluate_runs(together, granted=granted)
    found: dict[str, dict[str, Any]] = {}
    for each in member_folders(cfg, folder):
        summary = read_summary(each)
        found[each.name] = {key: summary.get(key) for key in ("status", "reason", *(c[1] for c in COLUMNS))}
        found[each.name] |= {key: summary.get(key) for key in ("stream_seconds", "fvu_reason", "ce_reason")}
    if all(each["status"] == DIVERGED for each in found.values()):
        reasons = {each["reason"] for each in found.values()}
        raise NumericsError(f"every dictionary of {folder} was given up: {min(reasons)}")
    result: dict[str, Any] = {"status": FINISHED, "dictionaries": found}
    result["cost"] = cost(cfg, list(found.values()))
    trained = [m for m in members(cfg) if found[m.name]["status"] != DIVERGED]
    result["seeds"] = compare_seeds(trained, folder) if "seed" in varied(cfg) else []
    write_json(folder / SUMMARY, result)
    return format_grid(result)


def batches(folders: list[Path]) -> list[list[Path]]:
    """Group dictionaries for evaluation in one pass, by the size of their exports; a large one is alone."""
    found: list[list[Path]] = []
    room = 0
    for folder in folders:
        size = sum(each.stat().st_size for each in (folder / EXPORT).iterdir())
        if not found or size > room:
            found.append([])
            room = EVALUATED_BYTES
        found[-1].append(folder)
        room -= size
    return found


def cost(cfg: Resolved, found: list[dict[str, Any]]) -> dict[str, float] | None:
    """Return seconds of training: the stream's, the dictionaries', and those of one run per dictionary.

    None where producers compute the stream (the consumers' wait for it is not the LLM's cost), where several
    groups read it, and on a GPU, whose work the host's clock does not measure.
    """
    timed = [each for each in found if each["stream_seconds"] is not None]
    if cfg.topology.producers or cfg.topology.groups > 1 or cfg.device != "cpu" or not timed:
        return None
    stream = timed[0]["stream_seconds"]
    dictionaries = sum(each["dictionary_seconds"] for each in timed)
    alone = stream * len(timed) + dictionaries
    return {
        "stream_seconds": stream,
        "dictionary_seconds": dictionaries,
        "alone_seconds": alone,
        "share": (stream + dictionaries) / alone,
    }


def format_grid(result: dict[str, Any]) -> str:
    """Return a table with a row per dictionary, then what one stream saved and how far seeds agree."""
    found: dict[str, dict[str, Any]] = result["dictionaries"]
    shown = [column for column in COLUMNS if any(each[column[1]] is not None for each in found.values())]
    lines = [["dictionary", *(head for head, _, _ in shown)]]
    for name, each in found.items():
        cells = ["-" if each[key] is None else f"{each[key]:{form}}" for _, key, form in shown]
        lines.append([name, *cells])
    table = columns(lines)
    table += [f"{name}: given up: {each['reason']}" for name, each in found.items() if each["reason"]]
    for label, key in (("FVU", "fvu_reason"), ("CE recovered", "ce_reason")):
        reasons = dict.fromkeys(each.get(key) for each in found.values() if each.get(key))
        table += [f"{label}: not measured ({reason})" for reason in reasons]
    if result["cost"]:
        table.append(
            "one stream for all: {stream_seconds:.0f} s for the activations and {dictionary_seconds:.0f} s "
            "for the dictionaries, {share:.0%} of the {alone_seconds:.0f} s of one run each".format(
                **result["cost"]
            )
        )
    for each in result["seeds"]:
        quarters = ", ".join(f"{share:.0%}" for share in each["quarters"])
        pair = f"{each['first']} and {each['second']}"
        share = f"{each['matched']:.1%} of the latents have a partner with cosine > {each['above']:g}"
        detail = f"; by how often they fire, rarest quarter first: {quarters}" if quarters else ""
        table.append(f"{pair}: {share}{detail} ({each['file']})")
    return "\n".join(table)
