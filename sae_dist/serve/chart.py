"""Histograms as SVG, coloured by the pages' style sheet."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from sae_dist.serve.words import number, one_in

WIDTH, HEIGHT, FOOT = 480, 120, 20


def codes(counts: Sequence[int], most: float) -> Markup:
    """Return the histogram of a latent's codes: equal bins from 0 to the greatest, heights by logarithm."""
    titles = [
        f"{number(most * n / len(counts))} to {number(most * (n + 1) / len(counts))}: {count:,} places"
        for n, count in enumerate(counts)
    ]
    bars = _bars(counts, titles)
    ticks = [(x * WIDTH, number(most * x)) for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return _svg("Histogram of codes; heights by logarithm", bars, ticks)


def rates(histogram: Sequence[tuple[float, int]], step: float, links: Sequence[str | None]) -> Markup:
    """Return the histogram of all latents' rates by powers of ten.

    Args:
        histogram: where each bar begins, as a power of ten, and how many latents it has, in order.
        step: the width of a bar, in powers of ten.
        links: of each bar, to the latents in it; None: none.
    """
    if not histogram:
        return Markup("")
    low = math.floor(histogram[0][0])
    high = max(math.ceil(histogram[-1][0] + step), low + 1)
    width = WIDTH / (high - low)
    most = max(count for _, count in histogram)
    bars = []
    for (power, count), link in zip(histogram, links, strict=True):
        title = f"{one_in(10 ** (power + step))} to {one_in(10**power)} tokens: {count:,} latents"
        bar = _bar((power - low) * width, step * width, count / most, title)
        bars.append(Markup('<a href="{}">{}</a>').format(link, bar) if link else bar)
    ticks = [((power - low) * width, one_in(10.0**power)) for power in range(low, high + 1)]
    every = -(-len(ticks) // 5)
    return _svg("Histogram of latents by how often they fire", bars, ticks[::every])


def _bars(counts: Sequence[int], titles: Sequence[str]) -> list[Markup]:
    width = WIDTH / max(len(counts), 1)
    most = math.log1p(max(counts, default=0)) or 1.0
    return [
        _bar(n * width, width, math.log1p(count) / most, title)
        for n, (count, title) in enumerate(zip(counts, titles, strict=True))
        if count
    ]


def _bar(x: float, width: float, height: float, title: str) -> Markup:
    tall = max(height * HEIGHT, 1.0)
    gap = 1.0 if width > 4 else 0.0
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
    ).format(x, HEIGHT - tall, width - gap, tall, title)


def _svg(name: str, bars: Sequence[Markup], ticks: Sequence[tuple[float, str]]) -> Markup:
    texts = []
    for x, text in ticks:
        anchor = "start" if x < WIDTH * 0.03 else "end" if x > WIDTH * 0.97 else "middle"
        texts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                x, HEIGHT + FOOT - 4, anchor, text
            )
        )
    whole = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}'
        '<line x1="0" x2="{}" y1="{}" y2="{}"/>{}</svg>'
    )
    drawn, named = Markup("").join(bars), Markup("").join(texts)
    return whole.format(WIDTH, HEIGHT + FOOT, name, drawn, WIDTH, HEIGHT, HEIGHT, named)
