"""The cards of a report, one per latent: strings and numbers only, ready to be laid out."""

import re
from dataclasses import dataclass

from sae_dist.core.text import visible as text_visible
from sae_dist.evaluation.report.firing import Context, Fired
from sae_dist.evaluation.report.latents import Latents
from sae_dist.tokens.decoder import Decoder

SIGNS = {"\n": "↵", "\r": "\\r", "\t": "⇥"}
SPACE = "␣"


@dataclass(frozen=True)
class Span:
    """A stretch of text; `shade` from 0 (silent) to 1 (the greatest code of this latent)."""

    text: str
    shade: float = 0.0
    code: str = ""
    fires: bool = False


@dataclass(frozen=True)
class Line:
    """A context: the code at the token that fires, and the text around it."""

    code: str
    spans: list[Span]
    row: int


@dataclass(frozen=True)
class Card:
    """The card of one latent."""

    number: int
    share: str
    fired: int
    every: str
    largest: str
    mean: str
    norm: str
    bars: list[tuple[float, str]]
    end: str
    strongest: str
    top: list[Line]
    drawn: list[tuple[str, list[Line]]]
    promoted: list[tuple[str, str]]
    suppressed: list[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """The cards of one group of latents."""

    name: str
    why: str
    cards: list[Card]

    @property
    def count(self) -> int:
        """The number of latents in the group."""
        return len(self.cards)


def parts(latents: Latents) -> list[Part]:
    """Make the cards of every group of latents; none if no latent could be read."""
    firings = latents.firings or {}
    return [
        Part(group.name, group.why, [card(latents, firings[number]) for number in group.latents])
        for group in latents.groups
    ]


def card(latents: Latents, firing: Fired) -> Card:
    """Make the card of one latent: numbers, histogram, contexts, and tokens."""
    share = firing.fired / max(latents.rows, 1)
    counts, end = firing.histogram.shown()
    most = max(counts, default=1)
    largest = firing.top[0].code if firing.top else 0.0
    effect = (latents.effects or {}).get(firing.latent)
    width = end / max(len(counts), 1)
    bars = [
        (100 * count / most, f"{count:,} codes from {width * n:.3g} to {width * (n + 1):.3g}")
        for n, count in enumerate(counts)
    ]
    drawn = firing.drawn() if latents.decoder else []
    top = [line(each, latents.decoder, largest) for each in firing.top]
    fires = [span.text for span in top[0].spans if span.fires] if top else []
    return Card(
        number=firing.latent,
        share=percent(share),
        fired=firing.fired,
        every=f"{1 / share:,.0f}" if share else "",
        largest=f"{largest:.3g}",
        mean=f"{firing.total / max(firing.fired, 1):.3g}",
        norm=f"{float(latents.sae.W_dec_FE[firing.latent].norm()):.3g}",
        bars=bars,
        end=f"{end:.3g}",
        strongest=chip("".join(fires)),
        top=top,
        drawn=[(name, [line(each, latents.decoder, largest) for each in chosen]) for name, chosen in drawn],
        promoted=[(chip(token), f"{value:+.2f}") for token, value in effect.promoted] if effect else [],
        suppressed=[(chip(token), f"{value:+.2f}") for token, value in effect.suppressed] if effect else [],
    )


def line(context: Context, decoder: Decoder | None, largest: float) -> Line:
    """Lay a context out as text; silent tokens are joined, and so are tokens that share a character."""
    spans: list[Span] = []
    pieces = decoder.pieces(context.ids) if decoder else []
    code, fires = 0.0, False
    for number, piece in enumerate(pieces):
        code, fires = max(code, context.codes[number]), fires or number == context.at
        if not piece and number + 1 < len(pieces):
            continue
        text = visible(piece)
        if not code and spans and not spans[-1].shade:
            spans[-1] = Span(spans[-1].text + text)
        else:
            shade = min(1.0, code / largest) if largest else 0.0
            spans.append(Span(text, shade, f"{code:.3g}" if code else "", fires))
        code, fires = 0.0, False
    return Line(f"{context.code:.3g}", spans, context.row)


def visible(text: str) -> str:
    """Replace line ends, tabs and control characters by signs that can be seen."""
    return text_visible("".join(SIGNS.get(sign, sign) for sign in text), "")


def chip(token: str) -> str:
    """Show a single token: its spaces become visible, and many of them are counted."""
    spaced = visible(token).replace(" ", SPACE)
    return re.sub(f"{SPACE}{{4,}}", lambda run: f"{SPACE}×{len(run[0])}", spaced)


def percent(share: float) -> str:
    """Format a share in percent, with two significant digits if it is small."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.1f} %"
