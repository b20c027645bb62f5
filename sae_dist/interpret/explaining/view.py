"""The words and rows of an explanation that a terminal and a notebook show, without markup."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_dist.interpret.explaining.explanation import Explanation

EACH = 5
"""Latents shown of a token."""
AROUND = 4
"""Tokens shown before and after the one on which a latent is strongest."""


@dataclass(frozen=True)
class TokenView:
    """A token as it is shown.

    Attributes:
        shown: its text, with signs that are none in print written out.
        score: of its latents together, as those of latents; 0: it does not count.
        fvu: the share that is not explained; NaN: there is none.
        flag: special, outlier, or nothing.
        latents: the most noteworthy that fired on it, with their codes, in words.
        words: everything about it, for reading on demand.
    """

    position: int
    token_id: int
    shown: str
    score: float
    fvu: float
    flag: str
    latents: str
    words: str


@dataclass(frozen=True)
class LatentView:
    """A latent as it is shown: its numbers in words, and the tokens around its greatest code."""

    cells: list[str]
    unusual: bool
    before: str
    strongest: str
    after: str


HEADINGS = ("latent", "score", "sum", "max", "tokens", "rate", "lift", "p", "p (Holm)", "effect")
"""The columns of `LatentView.cells`; a label follows the latent's number."""


def shown(piece: str) -> str:
    """Return a token's text as one line, without signs that a terminal would obey."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in piece)


def number(value: Any, digits: int = 3) -> str:
    """Return a number in few digits; None and what is not finite as a dash."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "-"
    whole = isinstance(value, int) or abs(value) >= 10**digits
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"


def headline(e: "Explanation") -> list[str]:
    """Return the sentences about model, text and what is missing."""
    about = e.about
    hooks = about["hook"] + (f" to {about['target_hook']}" if "target_hook" in about else "")
    around = [
        f"{shown(each['token'])} ({each['id']}) {place} the text"
        for key, place in (("prefix", "before"), ("suffix", "after"))
        for each in about[key]
    ]
    flagged = [f"{about[key]} {word}" for key, word in (("special", "special"), ("outliers", "outliers"))]
    found = [
        f"{about['dictionary']} of {about['model']}, {hooks}",
        f"given as {about['given_as']}; {', '.join(around) or 'no special token around a text'}",
        f"{about['tokens']} tokens, {about['counted']} counted ({', '.join(flagged)}: longer than "
        f"{about['max_norm_multiple']:g} times the median); not explained (FVU) {number(about['fvu'])}",
    ]
    found += [f"{word}: {about[key]}" for key, word in REASONS.items() if about[key]]
    return found + about["notes"]


REASONS = {"rates_reason": "no rates, so nothing is called unusual", "effect_reason": "no direct effects"}


def summary(e: "Explanation") -> str:
    """Return the sentence about what is unusual."""
    columns, about = e.latents_seen, e.about
    total = len(columns["latent"])
    if about["rates_reason"]:
        return f"{total:,} latents fired, by the sum of their codes"
    unusual = sum(columns["unusual"])
    return (
        f"{total:,} latents fired, by code times surprise; {unusual} unusual for a text "
        f"(at most {about['level']:.0%} of ordinary texts have any, by Holm)"
    )


def token_views(e: "Explanation") -> list[TokenView]:
    """Return every token as it is shown."""
    pairs, columns = e.pairs, e.tokens_seen
    places: list[list[int]] = [[] for _ in columns["position"]]
    for place, position in enumerate(pairs["position"]):
        places[position].append(place)
    weight = [code * (s or 1.0) for code, s in zip(pairs["code"], pairs["surprise"], strict=True)]
    found = []
    for position, own in enumerate(places):
        flag = (
            "special" if columns["special"][position] else "outlier" if columns["outlier"][position] else ""
        )
        best = sorted(own, key=lambda place: -weight[place])[:EACH]
        latents = [f"{pairs['latent'][place]}: {number(pairs['code'][place])}" for place in best]
        view = TokenView(
            position,
            columns["token_id"][position],
            shown(columns["token"][position]),
            sum(weight[place] for place in own) if columns["counted"][position] else 0.0,
            columns["fvu"][position],
            flag,
            "  ".join(latents),
            _words(e, position, [_latent_words(pairs, place) for place in best]),
        )
        found.append(view)
    return found


def _latent_words(pairs: dict[str, list[Any]], place: int) -> str:
    label = pairs["label"][place]
    parts = [
        f"latent {pairs['latent'][place]}" + (f" ({label})" if label else ""),
        f"code {number(pairs['code'][place])}",
        f"share {number(pairs['share'][place], 2)}",
    ]
    if pairs["effect"][place] is not None:
        parts.append(f"effect {number(pairs['effect'][place], 2)}")
    return ", ".join(parts)


def _words(e: "Explanation", position: int, latents: list[str]) -> str:
    columns = e.tokens_seen
    first = f"{shown(columns['token'][position])!r}, id {columns['token_id'][position]}, position {position}"
    marks = [word for word in ("special", "outlier") if columns[word][position]]
    lines = [
        ", ".join([first, *marks]),
        f"not explained {number(columns['fvu'][position])}, norm {number(columns['norm'][position])}",
    ]
    if columns["next_token"][position] is not None:
        kind = "" if columns["next_is"][position] == "text" else ", the likeliest"
        lines.append(f"effects are on {shown(columns['next_token'][position])!r}{kind}")
    return "\n".join(lines + latents)


def latent_views(e: "Explanation") -> list[LatentView]:
    """Return the most noteworthy latents as they are shown, `top` of them."""
    columns, pieces = e.latents_seen, [shown(each) for each in e.tokens_seen["token"]]
    effects: dict[int, float] = {}
    for position, latent, effect in zip(
        *(e.pairs[key] for key in ("position", "latent", "effect")), strict=True
    ):
        if effect is not None and e.tokens_seen["counted"][position]:
            effects[latent] = effects.get(latent, 0.0) + effect
    found = []
    for row, latent in enumerate(columns["latent"][: e.about["top"]]):
        at, label = columns["at"][row], columns["label"][row]
        named = f"{latent} {shown(label)}" if label else str(latent)
        numbers = [number(columns[key][row]) for key in ("score", "sum", "max", "count", "rate", "lift")]
        numbers += [number(columns[key][row], 2) for key in ("p", "p_holm")]
        view = LatentView(
            [named, *numbers, number(effects.get(latent))],
            bool(columns["unusual"][row]),
            "".join(pieces[max(at - AROUND, 0) : at]),
            pieces[at],
            "".join(pieces[at + 1 : at + 1 + AROUND]),
        )
        found.append(view)
    return found
