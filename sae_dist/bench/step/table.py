"""The results of a step benchmark: ratios within a round, tables, CSV, plot."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from sae_dist.bench.step.plan import CONTESTANTS, MODES, Shape, StepPlan
from sae_dist.core.files import write_json
from sae_dist.core.text import GIB, columns
from sae_dist.launch.provenance import provenance
from sae_dist.metrics.drawing import plain_settings

BELOW = ("product_float32", "product_tf32", "product_bfloat16", "ours", "ours_row_adam")
"""What times are given as multiples of in a table; the CSV has all."""


@dataclass
class StepLine:
    """The times of one contestant at one shape in one mode.

    Attributes:
        samples: seconds of a step by number of the round.
        peak: bytes while it stepped, the most.
        fvu: of its own forward.
        dead: how many latents counted as dead by its own rule.
        status: why there is no time, in two words; None: there is one. `why`: in full.
    """

    contestant: str
    shape: Shape
    mode: str
    samples: dict[int, float] = field(default_factory=dict)
    peak: int | None = None
    fvu: float | None = None
    dead: int | None = None
    about: dict[str, Any] = field(default_factory=dict)
    status: str | None = None
    why: str | None = None

    @property
    def median_s(self) -> float | None:
        return median(self.samples.values()) if self.samples else None

    def over(self, other: "StepLine") -> float | None:
        """Return its time as a multiple of another's: the median over rounds of the ratio in the round."""
        common = self.samples.keys() & other.samples.keys()
        return median(self.samples[each] / other.samples[each] for each in common) if common else None


def write_step_tables(plan: StepPlan, lines: list[StepLine], remark: str = "") -> None:
    """Write step.csv, step.md, step.json and step.png; `remark` ends the line on where it was measured."""
    origin = provenance()
    about = {key: origin[key] for key in ("time", "commit", "platform", "python", "devices")}
    write_json(plan.folder / "step.json", {"about": about, "lines": [as_values(line) for line in lines]})
    with open(plan.folder / "step.csv", "w", newline="", encoding="utf-8") as file:
        rows = [csv_row(line, alike(line, lines)) for line in lines]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (plan.folder / "step.md").write_text(step_markdown(lines, remark), encoding="utf-8")
    if any(line.samples for line in lines):
        plot_step_times(lines, plan.folder / "step.png")


def as_values(line: StepLine) -> dict[str, Any]:
    """Return a line as JSON-able values."""
    return vars(line) | {"shape": vars(line.shape)}


def alike(line: StepLine, lines: list[StepLine]) -> dict[str, StepLine]:
    """Return the lines of all contestants at a line's shape and mode."""
    return {each.contestant: each for each in lines if (each.shape, each.mode) == (line.shape, line.mode)}


def csv_row(line: StepLine, others: dict[str, StepLine]) -> dict[str, Any]:
    """Return the numbers of a line in full, with multiples of every contestant's time."""
    samples = line.samples.values()
    row = vars(line.shape) | {"mode": line.mode, "contestant": line.contestant}
    row |= {key: line.about.get(key) for key in ("version", "torch", "threads", "settings")}
    row |= {"status": line.why or "timed", "rounds": len(samples), "median_s": line.median_s}
    row |= {"lowest_s": min(samples, default=None), "highest_s": max(samples, default=None)}
    row |= {"tokens_per_s": line.shape.batch / line.median_s if line.median_s else None}
    row |= {"peak_bytes": line.peak, "fvu": line.fvu, "dead_latents": line.dead}
    for name in CONTESTANTS:
        row[f"over_{name}"] = line.over(others[name]) if name in others else None
    return row


def heads(lines: list[StepLine]) -> tuple[list[str], tuple[str, ...]]:
    """Return which contestants times are multiples of, and the heads of the columns."""
    below = [name for name in BELOW if any(line.contestant == name and line.samples for line in lines)]
    multiples = [f"/ {CONTESTANTS[name].label}" for name in below]
    return below, ("", "version", "ms/step", "from - to", "tokens/s", *multiples, "peak GiB", "rounds")


def row_of(line: StepLine, others: dict[str, StepLine], below: list[str]) -> tuple[str, ...]:
    """Return the cells of a line, in the order of `heads`."""
    contestant = CONTESTANTS[line.contestant]
    first = (contestant.label, line.about.get("version") or "-")
    middle = line.median_s
    if middle is None:
        return (*first, line.status or "-", *["-"] * (len(below) + 4))
    multiples = [line.over(others[name]) for name in below]
    spread = f"{1e3 * min(line.samples.values()):.4g} - {1e3 * max(line.samples.values()):.4g}"
    return (
        *first,
        f"{1e3 * middle:.4g}" + (f" ({line.status})" if line.status else ""),
        spread,
        "-" if contestant.floor else f"{line.shape.batch / middle:.0f}",
        *("-" if each is None else f"{each:.2f}" for each in multiples),
        f"{(line.peak or 0) / GIB:.2f}",
        str(len(line.samples)),
    )


def tables(lines: list[StepLine]) -> list[tuple[str, list[tuple[str, ...]], list[str]]]:
    """Return (title, head and rows, notes) of each shape and mode."""
    found = []
    for shape, mode in dict.fromkeys((line.shape, line.mode) for line in lines):
        own = [line for line in lines if (line.shape, line.mode) == (shape, mode)]
        below, head = heads(own)
        rows = [head, *(row_of(line, alike(line, own), below) for line in own)]
        notes = [note for line in own for note in notes_of(line)]
        found.append((f"{shape}: {MODES[mode]}", rows, notes))
    return found


def notes_of(line: StepLine) -> list[str]:
    """Return notes on a line: its settings, and why it has no time."""
    label, settings = CONTESTANTS[line.contestant].label, line.about.get("settings")
    notes = [f"{label}: {settings}"] if settings and line.mode == next(iter(MODES)) else []
    return [*notes, *([f"{label}: {line.why}"] if line.why else [])]


def format_step_tables(plan: StepPlan, lines: list[StepLine], remark: str = "") -> str:
    """Format all tables for the terminal."""
    shown = []
    for title, rows, notes in tables(lines):
        shown += [title, *columns(rows, left=2), *notes, ""]
    return "\n".join([*shown, *caption(lines, remark), f"{plan.folder / 'step.md'}, .csv, .json, .png"])


def step_markdown(lines: list[StepLine], remark: str) -> str:
    """Format all tables as Markdown."""
    shown = []
    for title, rows, notes in tables(lines):
        shown += [title, ""]
        shown += [f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:])]
        shown += ["", *(f"- {note}" for note in notes), ""]
    return "\n".join([*shown, *caption(lines, remark), ""])


def caption(lines: list[StepLine], remark: str) -> list[str]:
    """Describe what the numbers mean, and where they were measured."""
    origin = provenance()
    torch, threads = (
        ", ".join(sorted({str(line.about[key]) for line in lines if key in line.about}))
        for key in ("torch", "threads")
    )
    return [
        "One training step by each trainer's own code, AuxK on, the same weights and rows for all; median "
        "over rounds in which all contestants take their turn, each time in another order, and the shortest "
        "and longest. A column '/ x' is the time as a multiple of x's in the same round, median over rounds. "
        "product: the encoder's bare x W_enc^T. peak: dictionary, optimizer, batch and step, without "
        "libraries.",
        f"{origin['platform']}, {', '.join(origin['devices'])}; torch {torch}; {threads} threads; "
        f"{origin['time'][:10]}, commit {(origin['commit'] or 'unknown')[:10]}{remark}.",
    ]


@plain_settings()
def plot_step_times(lines: list[StepLine], path: Path) -> None:
    """Plot the time of a step by contestant: a panel for each shape, a colour for each mode."""
    from matplotlib.figure import Figure

    shapes = [shape for shape in dict.fromkeys(line.shape for line in lines)]
    names = [name for name in CONTESTANTS if any(line.contestant == name for line in lines)]
    steppers = [name for name in names if not CONTESTANTS[name].floor][::-1]
    figure = Figure(figsize=(8, 1 + (0.6 + 0.35 * len(steppers)) * len(shapes)), layout="constrained")
    panels = figure.subplots(len(shapes), squeeze=False)[:, 0]
    for shape, axes in zip(shapes, panels, strict=True):
        for number, mode in enumerate(MODES):
            own = {line.contestant: line for line in lines if (line.shape, line.mode) == (shape, mode)}
            points = [(n, own[name]) for n, name in enumerate(steppers) if name in own and own[name].samples]
            if not points:
                continue
            middles = [1e3 * (line.median_s or 0.0) for _, line in points]
            least = [
                m - 1e3 * min(line.samples.values()) for m, (_, line) in zip(middles, points, strict=True)
            ]
            most = [
                1e3 * max(line.samples.values()) - m for m, (_, line) in zip(middles, points, strict=True)
            ]
            heights = [n + 0.2 * (0.5 - number) for n, _ in points]
            axes.errorbar(
                middles,
                heights,
                xerr=[least, most],
                fmt="o",
                color=f"C{number}",
                label=MODES[mode],
                capsize=3,
            )
        for name in BELOW[:3]:
            floors = [
                line for line in lines if (line.contestant, line.shape) == (name, shape) and line.samples
            ]
            if floors:
                axes.axvline(1e3 * (floors[0].median_s or 0.0), color="0.5", linestyle=":")
                axes.annotate(
                    CONTESTANTS[name].label,
                    (1e3 * (floors[0].median_s or 0.0), 1.0),
                    xycoords=("data", "axes fraction"),
                    rotation=90,
                    va="top",
                    ha="right",
                    fontsize=7,
                )
        axes.set_yticks(range(len(steppers)), [CONTESTANTS[name].label for name in steppers])
        axes.set(xscale="log", title=str(shape), xlabel="ms per step")
        axes.grid(alpha=0.3, which="both", axis="x")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        panels[0].legend(handles, labels, fontsize=7)
    figure.savefig(path, dpi=120)
