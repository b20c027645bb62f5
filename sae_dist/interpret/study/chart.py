"""The figure of effect against dose, with the bands of the controls: an SVG without scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup, escape

from sae_dist.interpret.study.claims import Judgement

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 62, 14, 12, 40
COLOURS = {"random direction": 1, "equal latent": 2, "wrong sign": 3, "shuffled dictionary": 4}
"""By control, the number of its colour in the page's style."""
SIDES = 0.16
"""How far from a dose's middle the outermost bars stand, as a share of the distance between doses."""


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def y(self, value: float) -> float:
        """Return the height at which a value is drawn."""
        inside = min(max(value, self.low), self.high)
        return round(TOP + (self.high - inside) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM), 1)


def chart(judgements: Sequence[Judgement], label: str) -> Markup:
    """Draw the effect of one latent at each dose, equally far apart, and the intervals of its controls."""
    values = [end for each in judgements for end in (each.lower, each.upper)]
    values += [end for each in judgements for pair in each.controls.values() for end in pair]
    values = [each for each in values if isfinite(each)]  # an end without a bound is drawn to the edge
    low, high = min([*values, 0.0]), max([*values, 0.0])
    room = 0.06 * (high - low) or 1.0
    scale = _Scale(low - room, high + room)
    step = (WIDTH - LEFT - RIGHT) / len(judgements)
    parts = _axis(scale)
    points = []
    for number, each in enumerate(judgements):
        x = LEFT + (number + 0.5) * step
        parts += _controls(each, x, step, scale)
        if isfinite(each.upper):
            parts.append(
                _bar(x, each.lower, each.upper, scale, "own", 0, f"{each.hypothesis}: {each.mean:+.3g}")
            )
        points.append(f"{x:.1f},{scale.y(each.mean)}")
        times = each.hypothesis.times
        name = each.hypothesis.how if times is None else f"{times:g}x"
        parts.append(
            Markup('<text class="tick" x="{}" y="{}">{}</text>').format(
                f"{x:.1f}", HEIGHT - BOTTOM + 18, name
            )
        )
    if len(points) > 1:
        parts.append(Markup('<polyline class="own" points="{}"/>').format(" ".join(points)))
    for each, point in zip(judgements, points, strict=True):
        x_at, y_at = point.split(",")
        filled = "claimed" if each.claimed else "not"
        parts.append(Markup('<circle class="own {}" cx="{}" cy="{}" r="4.5"/>').format(filled, x_at, y_at))
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )


def _axis(scale: _Scale) -> list[Markup]:
    parts = []
    for value in _ticks(scale.low, scale.high):
        y = scale.y(value)
        kind = "zero" if value == 0 else "grid"
        parts.append(
            Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                kind, LEFT, WIDTH - RIGHT, y, y
            )
        )
        parts.append(
            Markup('<text class="value" x="{}" y="{}">{}</text>').format(LEFT - 8, y + 4, f"{value:g}")
        )
    return parts


def _ticks(low: float, high: float) -> list[float]:
    from math import ceil, floor, log10

    size = 10.0 ** floor(log10((high - low) / 4))
    step = next(size * each for each in (1, 2, 5, 10) if (high - low) / (size * each) <= 6)
    return [round(number * step, 12) + 0.0 for number in range(ceil(low / step), floor(high / step) + 1)]


def _controls(each: Judgement, x: float, step: float, scale: _Scale) -> list[Markup]:
    places = (-2, -1, 1, 2)
    return [
        _bar(x + place * SIDES * step, *each.controls[name], scale, "control", COLOURS[name], name)
        for place, name in zip(places, COLOURS, strict=True)
        if name in each.controls
    ]


def _bar(x: float, lower: float, upper: float, scale: _Scale, kind: str, colour: int, title: str) -> Markup:
    top, bottom = scale.y(upper), scale.y(lower)
    width = 9 if kind == "control" else 3
    return Markup(
        '<rect class="{} c{}" x="{}" y="{}" width="{}" height="{}"><title>{}: {} to {}</title></rect>'
    ).format(
        kind,
        colour,
        f"{x - width / 2:.1f}",
        top,
        width,
        f"{max(bottom - top, 1.5):.1f}",
        escape(title),
        f"{lower:+.3g}",
        f"{upper:+.3g}",
    )
