"""Figures as SVG inside the page, in the page's own colours, light or dark.

Matplotlib draws with placeholder colours, which are then replaced by the page's colour names.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup, escape
from torch import Tensor

from sae_dist.evaluation.report.collect import Group
from sae_dist.metrics.drawing import plain_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, LINE, GRID, SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
LINES = tuple(f"#0d0e{number:02x}" for number in range(8))
COLOURS = {INK: "currentColor", LINE: "var(--accent)", GRID: "var(--rule)", SECOND: "var(--mark)"}
COLOURS |= {stand_in: f"var(--line-{number})" for number, stand_in in enumerate(LINES)}
SIZE = (3.9, 2.5)
POINTS = 800
XLINK = "http://www.w3.org/1999/xlink"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
CURVES = (
    ("loss/fvu", "eval/fvu", "FVU", "share of the variance that is not reconstructed; 0 is perfect", "log"),
    ("sparsity/l0", "eval/l0", "L0", "latents that fire on a token, on average", "linear"),
    (
        "latents/dead_fraction",
        None,
        "Dead latents",
        "share that has not fired for sae.dead_after training tokens",
        "linear",
    ),
    ("perf/tokens_per_second", None, "Throughput", "tokens per second, all processes together", "linear"),
    ("optim/grad_norm", None, "Gradient norm", "before clipping, last step of each row", "log"),
    ("optim/lr", None, "Learning rate", "of the decoder", "linear"),
)
"""Column of metrics.jsonl, second column in the same axes, title, meaning, scale."""


@dataclass(frozen=True)
class Figure:
    """A picture with its title and caption."""

    title: str
    caption: str
    svg: Markup


def curves(rows: list[dict[str, Any]], held_out: dict[str, float]) -> list[Figure]:
    """Draw a figure for each of CURVES that has values; `held_out`: final values to mark, by column."""
    found = []
    for column, beside, title, caption, scale in CURVES:
        points, others = _points(rows, column), _points(rows, beside)
        if not points:
            continue
        step = -(-len(points) // POINTS)
        caption += f"; one row in {step}" if step > 1 else ""
        caption += "; second line: held out, while training" if others else ""
        caption += "; dashed: at the end, held out" if column in held_out else ""
        draw = partial(
            _curve, points=points[::step], others=others, mark=held_out.get(column), log=scale == "log"
        )
        found.append(Figure(title, caption, svg(draw, title)))
    return found


def density(rate_F: Tensor, groups: Sequence[Group]) -> Figure:
    """Draw how often latents fire, with the places of the latents shown below."""
    log_F = rate_F[rate_F > 0].double().log10()
    low = min(-5.0, float(log_F.min()) if len(log_F) else -5.0)
    bins = 36
    counts = torch.histc(log_F, bins, low, 0.0).tolist()
    edges = torch.linspace(low, 0.0, bins + 1).tolist()

    def draw(axes: "Axes") -> None:
        axes.stairs(counts, edges, fill=True, color=LINE, alpha=0.55)
        height = max([*counts, 1])
        for group in groups:
            places = [float(rate_F[latent].log10()) for latent in group.latents]
            if not places:
                continue
            axes.plot(places, [-0.04 * height] * len(places), "|", color=SECOND, markersize=7)
            middle = sum(places) / len(places)
            axes.text(middle, -0.17 * height, group.name.lower(), ha="center", va="center", fontsize=8)
        axes.set(xlabel="share of tokens on which a latent fires", ylabel="latents")
        axes.set_ylim(bottom=-0.24 * height)
        ticks = [float(n) for n in range(int(low) - (low % 1 > 0), 1)]
        axes.set_xticks(ticks, [f"{10**tick:g}" for tick in ticks])
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1.05 * height])

    silent = int((rate_F == 0).sum())
    caption = f"{silent:,} of {len(rate_F):,} latents never fired; ticks: the latents shown below"
    return Figure("How often latents fire", caption, svg(draw, "density"))


def svg(draw: Any, name: str, size: tuple[float, float] = SIZE) -> Markup:
    """Return what `draw` draws on axes as an <svg> without any id, script or address of its own.

    Args:
        size: inches; the larger, the smaller the text.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with plain_settings({**STYLE, "svg.hashsalt": name}):
        figure = Canvas(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.6, linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(written, metadata=nothing)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, colour in COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    label = f'role="img" aria-label="{escape(name)}"'
    return Markup(f'<svg {view[0]} xmlns:xlink="{XLINK}" {label}>{text[text.index(">") + 1 :]}')


def _points(rows: list[dict[str, Any]], column: str | None) -> list[tuple[float, float]]:
    return [(row["tokens"], row[column]) for row in rows if column and row.get(column) is not None]


def _line(axes: "Axes", points: list[tuple[float, float]], color: str) -> None:
    tokens, values = zip(*points, strict=True)
    axes.plot(tokens, values, color=color, linewidth=1.3, marker="." if len(points) < 20 else None)


def _curve(
    axes: "Axes",
    points: list[tuple[float, float]],
    others: list[tuple[float, float]],
    mark: float | None,
    log: bool,
) -> None:
    _line(axes, points, LINE)
    if others:
        _line(axes, others, SECOND)
    if mark is not None:
        axes.axhline(mark, color=SECOND, linestyle="--", linewidth=1)
    over_tokens(axes, [value for _, value in points], log, mark or 0.0)


def over_tokens(axes: "Axes", values: list[float], log: bool, top: float = 0.0) -> None:
    """Set ticks and limits of curves over training tokens; linear ones show 0, and at least `top`."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if log and min(values) > 0:
        axes.set_yscale("log")
        plain_log(axes.yaxis, values)
        return
    # From 0 on: a line that hardly changes should look flat.
    axes.set_ylim(min(0.0, *values), 1.08 * max([*values, top]) or 1.0)
    axes.yaxis.set_major_formatter(EngFormatter(sep="") if max(values) >= 1000 else "{x:g}")


def plain_log(axis: "Axis", values: list[float]) -> None:
    """Set ticks of a logarithmic axis: 0.4 0.5 0.6, 0.2 0.5 1, or powers of ten, as far as `values` span."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

    span = max(values) / min(values)
    if span < 4:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 100 else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter("{x:g}")
