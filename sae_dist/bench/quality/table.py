"""Tables of a quality benchmark: terminal, Markdown, CSV, JSON, and a plot of FVU against learning rate."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from sae_dist.bench.quality.data import describe
from sae_dist.bench.quality.plan import Outcome, QualityPlan
from sae_dist.core.files import write_json
from sae_dist.core.text import columns
from sae_dist.launch.provenance import provenance
from sae_dist.metrics.drawing import plain_settings

HEAD = ("", "version", "lr", "FVU", "dead", "L0", "seconds", "seeds")
COLUMNS = (
    "contestant latents k lr seed fvu dead l0 test_rows train_seconds process_seconds version torch threads "
    "settings"
).split()


def write_reports(plan: QualityPlan, outcomes: list[Outcome]) -> None:
    """Write <report>.json, .csv, .md and one plot for each shape."""
    origin = provenance()
    about = {key: origin[key] for key in ("time", "commit", "platform", "python", "devices")}
    content = {"plan": _plain(plan), "about": about, "outcomes": [asdict(each) for each in outcomes]}
    write_json(plan.folder / f"{plan.report}.json", content)
    with open(plan.folder / f"{plan.report}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(trial for each in outcomes for trial in each.trials)
    (plan.folder / f"{plan.report}.md").write_text(quality_markdown(plan, outcomes), encoding="utf-8")
    for latents, k in plan.shapes:
        shape = [each for each in outcomes if (each.latents, each.k) == (latents, k)]
        if any(trial["fvu"] is not None for each in shape for trial in each.trials):
            plot_learning_rates(shape, plan.folder / f"{plan.report}_{latents}_k{k}.png")


def format_quality_tables(plan: QualityPlan, outcomes: list[Outcome]) -> str:
    """Format all tables for the terminal."""
    lines = []
    for title, rows, notes in _tables(plan, outcomes):
        lines += [title, *columns((HEAD, *rows), left=None), *notes, ""]
    return "\n".join([*lines, *_caption(plan, outcomes), f"tables and plots: {plan.folder}/{plan.report}.md"])


def quality_markdown(plan: QualityPlan, outcomes: list[Outcome]) -> str:
    """Format all tables as Markdown."""
    lines = []
    for title, rows, notes in _tables(plan, outcomes):
        lines += [title, "", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += ["", *(f"- {note}" for note in notes), ""]
    return "\n".join([*lines, *_caption(plan, outcomes), ""])


def _tables(plan: QualityPlan, outcomes: list[Outcome]) -> list[tuple[str, list[tuple[str, ...]], list[str]]]:
    """Return (title, rows, notes) for each shape."""
    tables = []
    for latents, k in plan.shapes:
        shape = [each for each in outcomes if (each.latents, each.k) == (latents, k)]
        if shape:
            notes = [note for each in shape for note in _notes(each)]
            tables.append((f"{latents} latents, k = {k}", [_row(each) for each in shape], notes))
    return tables


def _row(outcome: Outcome) -> tuple[str, ...]:
    best = outcome.at_best
    if not best:
        return (outcome.label, *["-"] * (len(HEAD) - 1))
    return (
        outcome.label,
        best[0]["version"],
        f"{outcome.best_lr:g}",
        spread([each["fvu"] for each in best], ".4f"),
        spread([100 * each["dead"] for each in best], ".1f") + " %",
        f"{mean(each['l0'] for each in best):.1f}",
        f"{median(each['train_seconds'] for each in best):.0f}",
        str(len(best)),
    )


def _notes(outcome: Outcome) -> list[str]:
    notes = []
    if outcome.error:
        notes.append(f"{outcome.label}: {outcome.error}")
    elif not outcome.bracketed and len({trial["lr"] for trial in outcome.trials}) > 1:
        notes.append(f"{outcome.label}: the best learning rate lies at the edge of what was tried")
    if outcome.at_best:
        notes.append(f"{outcome.label}: {outcome.at_best[0]['settings']}")
    return notes


def spread(values: list[float], form: str) -> str:
    """Format the mean over seeds and, of several, the standard deviation."""
    shown = f"{mean(values):{form}}"
    return f"{shown} ± {stdev(values):{form}}" if len(values) > 1 else shown


def _caption(plan: QualityPlan, outcomes: list[Outcome]) -> list[str]:
    origin = provenance()
    trials = [trial for each in outcomes for trial in each.trials if trial.get("torch")]
    torch = ", ".join(sorted({trial["torch"] for trial in trials}))
    threads = ", ".join(sorted({str(trial["threads"]) for trial in trials}))
    rows = next((trial["test_rows"] for trial in trials if trial["test_rows"]), 0)
    return [
        f"Data: {describe(plan)}.",
        "Every contestant trains by its own trainer with AuxK on, on the same rows in the same order, with "
        f"{_rate(plan)}.",
        f"FVU: held out, pooled; dead: latents silent on all {rows:,} held-out rows; mean ± standard "
        "deviation over seeds; seconds: median of the training loop, reading included.",
        f"{origin['platform']}, {', '.join(origin['devices'])}; torch {torch}; {threads} threads; "
        f"{origin['time'][:10]}, commit {(origin['commit'] or 'unknown')[:10]}.",
    ]


def _rate(plan: QualityPlan) -> str:
    if plan.lr:
        return f"the learning rate {plan.lr:g}"
    return (
        f"its own learning rate from a sweep (factor 2{', then 1.4' if plan.refine else ''}; one seed; "
        "extended until bracketed), chosen by FVU; sae_dist's only among those with at most 5 % dead latents"
    )


@plain_settings()
def plot_learning_rates(shape: list[Outcome], path: Path) -> None:
    """Plot FVU against learning rate, one line for each contestant; seeds at the best rate as dots."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, outcome in enumerate(shape):
        points = sorted((t["lr"], t["fvu"], t["seed"]) for t in outcome.trials if t["fvu"] is not None)
        first = [(lr, fvu) for lr, fvu, seed in points if seed == 0]
        if not first:
            continue
        color = f"C{number}"
        axes.plot(*zip(*first, strict=True), marker="o", label=outcome.label, color=color)
        axes.plot(*zip(*[p[:2] for p in points], strict=True), ".", color=color)
    axes.set(xlabel="learning rate", ylabel="FVU, held out", xscale="log", yscale="log")
    tried = sorted({trial["lr"] for outcome in shape for trial in outcome.trials})
    axes.set_xticks(tried, [f"{lr:g}" for lr in tried], rotation=45)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_title(f"{shape[0].latents} latents, k = {shape[0].k}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)


def _plain(plan: QualityPlan) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(plan), default=str))
