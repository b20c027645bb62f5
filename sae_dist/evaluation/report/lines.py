"""Figures of many dictionaries: FVU against L0, and their curves in common axes."""

from functools import partial
from typing import TYPE_CHECKING, Any

from sae_dist.evaluation.axes import spanned
from sae_dist.evaluation.report.figures import LINES, Figure, over_tokens, plain_log, svg
from sae_dist.evaluation.report.members import LineStyle, Member, Points
from sae_dist.evaluation.report.warn import RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (4.8, 3.1)
NUMBERED = 16
APART = 0.058
"""The least distance of two numbers at the lines' ends, as a share of the axis."""
DISTINCT = 1.15
"""The least ratio of two L0s that both get a tick."""
OVERLAYS = (
    ("loss/fvu", "FVU in training", "of the batch, before each step", "log"),
    ("loss/total", "Loss in training", "reconstruction, AuxK and penalties together", "log"),
    ("latents/dead_fraction", "Dead latents", "share silent for sae.dead_after training tokens", "linear"),
    (RATE, "Throughput", "activations per second, by the wall clock", "linear"),
)
"""Column of metrics.jsonl, title, meaning, scale."""


def frontier(members: list[Member]) -> Figure | None:
    """Draw held-out FVU against L0, a line for each series; None: no dictionary is evaluated."""
    series: dict[str, list[Member]] = {}
    for each in members:
        if each.run.summary.get("fvu") and each.run.summary.get("l0"):
            series.setdefault(each.line.series, []).append(each)
    if not series:
        return None
    count = sum(map(len, series.values()))
    caption = f"held out, {count} of {len(members)} dictionaries; lower and further left is better"
    return Figure("FVU against L0", caption, svg(partial(_frontier, series=series), "FVU against L0", SIZE))


def overlays(members: list[Member]) -> list[Figure]:
    """Draw a figure for each of OVERLAYS that has values."""
    found = []
    for column, title, means, scale in OVERLAYS:
        drawn = [each for each in members if each.points[column]]
        if drawn:
            draw = partial(_overlay, members=drawn, column=column, log=scale == "log")
            found.append(Figure(title, means, svg(draw, title, SIZE)))
    return found


def _frontier(axes: "Axes", series: dict[str, list[Member]]) -> None:
    values: Points = []
    for its in series.values():
        points = sorted((each.run.summary["l0"], each.run.summary["fvu"]) for each in its)
        line = its[0].line
        _draw(axes, points, line, line.of_series, marker="o", markersize=4)
        values += points
    axes.set(xlabel="L0: latents that fire on a token", ylabel="FVU", xscale="log", yscale="log")
    plain_log(axes.yaxis, [fvu for _, fvu in values])
    plain_log(axes.xaxis, [l0 for l0, _ in values])
    axes.set_xlim(*spanned([l0 for l0, _ in values]))
    axes.set_ylim(*spanned([fvu for _, fvu in values]))
    places = sorted({float(f"{l0:.3g}") for l0, _ in values})
    if all(b / a > DISTINCT for a, b in zip(places, places[1:], strict=False)):
        axes.set_xticks(places)


def _overlay(axes: "Axes", members: list[Member], column: str, log: bool) -> None:
    for each in members:
        _draw(axes, each.points[column], each.line, each.line.dashes)
    over_tokens(axes, [value for each in members for _, value in each.points[column]], log)
    if len(members) <= NUMBERED:
        _number(axes, members, column)


def _draw(axes: "Axes", points: Points, line: LineStyle, dashes: tuple[float, ...], **marks: Any) -> None:
    across, up = zip(*points, strict=True)
    style = (0, dashes) if dashes else "-"
    axes.plot(across, up, color=LINES[line.colour], linewidth=1.1, linestyle=style, **marks)


def _number(axes: "Axes", members: list[Member], column: str) -> None:
    """Write the dictionaries' numbers at the ends of their lines, moved apart if they would overlap."""
    axes.get_ylim()  # Matplotlib computes limits on request.
    place_of = axes.transData + axes.transAxes.inverted()
    ends = [place_of.transform(each.points[column][-1]) for each in members]
    last = max(across for across, _ in ends)
    beside = [n for n, (across, _) in enumerate(ends) if across == last]
    up_of = dict(zip(beside, apart([float(ends[n][1]) for n in beside]), strict=True))
    for n, each in enumerate(members):
        across, up = (1.015, up_of[n]) if n in up_of else (ends[n][0] + 0.01, ends[n][1])
        color, place = LINES[each.line.colour], axes.transAxes
        axes.text(across, up, str(each.number), transform=place, color=color, fontsize=7.5, va="center")


def apart(places: list[float]) -> list[float]:
    """Move places on an axis from 0 to 1 as little as puts them APART from each other; their order stays."""
    order = sorted(range(len(places)), key=lambda n: places[n])
    found = [places[n] for n in order]
    for n in range(1, len(found)):
        found[n] = max(found[n], found[n - 1] + APART)
    # Numbers pushed over the top move down again, as far as there is room.
    found[-1] = min(found[-1], max(1.0, APART * (len(found) - 1)))
    for n in range(len(found) - 2, -1, -1):
        found[n] = min(found[n], found[n + 1] - APART)
    return [found[order.index(n)] for n in range(len(places))]
