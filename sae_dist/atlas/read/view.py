"""A latent as a person sees it: its numbers, tokens, neighbours and examples, in lines or in a notebook."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.atlas.read.labels import Label
from sae_dist.atlas.read.rows import Context, Example, Latent
from sae_dist.atlas.schema import KEPT, QUANTILES, TOP
from sae_dist.core.text import visible

SIGNS = {"\n": "↵", "\r": "\\r", "\t": "⇥"}
DARKEST = 0.75
LINES = 5
"""Examples of the greatest codes that are printed."""


@dataclass(frozen=True, eq=False, repr=False)
class LatentView:
    """A latent with its examples.

    Attributes:
        about: all that the atlas says of it in numbers and lists.
        examples: places where it fires, the greatest codes first.
        label: the newest that it was given.
        facts: of the atlas.
    """

    about: Latent
    examples: list[Example]
    label: Label | None
    facts: Mapping[str, Any]

    def to_html(self) -> str:
        """Return what a notebook shows: no scripts, nothing fetched."""
        from sae_dist.core.template import rendered

        about = self.about
        values = {
            "headline": self.headline,
            "label": self.label,
            "bars": bars(about.histogram, about.most) if about.count else [],
            "lists": [(title, [(chip(word), shown) for word, shown in each]) for title, each in self.lists],
            "groups": [
                (name, [(f"{each.code:.3g}", spans(each.context, about.most)) for each in own])
                for name, own in self.groups
            ],
        }
        return rendered(Path(__file__).with_name("latent.html"), values)

    def _repr_html_(self) -> str:
        return self.to_html()

    @property
    def headline(self) -> list[str]:
        """The sentences about where and how often it fires."""
        about, facts = self.about, self.facts
        hooks = facts["hook"] + (f" to {facts['target_hook']}" if facts["target_hook"] else "")
        found = [f"latent {about.latent:,} of {facts['num_latents']:,}, {facts['kind']} at {hooks}"]
        if not about.count:
            return [*found, f"it fires on none of {facts['kept']:,} tokens"]
        rare = "; too rare for claims" if about.count < facts["few"] else ""
        found.append(
            f"fires on {about.count:,} of {facts['kept']:,} tokens (rate {about.rate:.3g}) in "
            f"{about.documents:,} documents; codes from {about.least:.3g} to {about.most:.3g}, mean "
            f"{about.mean:.3g}{rare}"
        )
        if about.quantiles:
            pairs = zip(QUANTILES, about.quantiles, strict=False)
            found.append("quantiles " + "  ".join(f"{100 * q:g} %: {value:.3g}" for q, value in pairs))
        return found

    @property
    def lists(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The title of each list of tokens or latents that there is, and its entries with a number each."""
        about = self.about
        bits = {"fires on (bits)": about.tokens, "followed by (bits)": about.next}
        effects = {
            "raises the logits of": about.up,
            "lowers the logits of": about.down,
            "raises, through the layers between": about.lens_up,
            "lowers, through the layers between": about.lens_down,
        }
        found = [(name, [(e.text, f"{e.bits:.2g}") for e in each]) for name, each in bits.items() if each]
        found += [
            (name, [(e.text, f"{e.logit:+.2f}") for e in each]) for name, each in effects.items() if each
        ]
        if about.near:
            found.append(("nearest (cosine)", [(str(e.latent), f"{e.cosine:.2f}") for e in about.near]))
        if about.together:
            shown = [(str(e.latent), f"{e.share:.0%}, {e.lift:.3g} times chance") for e in about.together]
            found.append(("fires together with", shown))
        return found

    @property
    def groups(self) -> list[tuple[str, list[Example]]]:
        """The examples by bin, each with a title."""
        last = len(self.about.bins) - 1
        found = []
        for number in sorted({each.bin for each in self.examples}):
            high, low = self.about.most * 0.5**number, self.about.most * 0.5 ** (number + 1)
            name = f"codes from {low:.3g} to {high:.3g}" if number < last else f"codes up to {high:.3g}"
            own = [each for each in self.examples if each.bin == number]
            if number == TOP:
                name = "greatest codes"
            else:
                name += f", drawn from {self.about.bins[number]:,}"
            found.append((name, own))
        return found

    def __str__(self) -> str:
        """Return lines for a terminal."""
        found = list(self.headline)
        if self.label is not None:
            found.append(f"label: {self.label.text} ({self.label.state})")
        for title, entries in self.lists:
            found.append(f"{title}: " + "  ".join(f"{chip(word)} {shown}" for word, shown in entries))
        for example in [each for each in self.examples if each.bin == TOP][:LINES]:
            context = example.context
            words = [
                f"[{visible_token(t.text)}]" if t.at == context.at else visible_token(t.text)
                for t in context.tokens
            ]
            found.append(f"{example.code:8.3g}  {''.join(words)}")
        return "\n".join(found)

    def __repr__(self) -> str:
        """Describe the latent in a line."""
        return f"LatentView({self.headline[0]}, rate {self.about.rate:.3g})"


@dataclass(frozen=True)
class Span:
    """A token as it is shown: how dark, whether the context is of it, what there is to know of it."""

    text: str
    shade: str
    marked: bool
    faint: bool
    words: str


def spans(context: Context, most: float) -> list[Span]:
    """Return the tokens of a context, shaded by their codes as shares of the greatest one."""
    found = []
    for each in context.tokens:
        share = min(max(each.code / most, 0.0), 1.0) if most > 0 else 0.0
        code = f", code {each.code:.3g}" if each.code else ""
        words = f"token {each.id} at {each.at}{code}"
        shown = visible_token(each.text)
        found.append(Span(shown, f"{DARKEST * share:.3f}", each.at == context.at, each.state != KEPT, words))
    return found


def bars(counts: Sequence[int], most: float) -> list[tuple[str, str]]:
    """Return the height in percent and the words of each bar of a histogram."""
    tallest, width = max(counts, default=0) or 1, most / max(len(counts), 1)
    return [
        (f"{100 * count / tallest:.1f}", f"{count:,} codes from {width * n:.3g} to {width * (n + 1):.3g}")
        for n, count in enumerate(counts)
    ]


def visible_token(text: str) -> str:
    """Return a token's text as part of a line: what a terminal or a page obeys is written out."""
    return visible("".join(SIGNS.get(sign, sign) for sign in text), "")


def chip(text: str) -> str:
    """Return a token's text alone: its spaces can be seen, and many of them are counted."""
    spaced = visible_token(text).replace(" ", "␣")
    return re.sub("␣{4,}", lambda run: f"␣×{len(run[0])}", spaced)
