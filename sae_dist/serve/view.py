"""The page of a latent: contexts, tables and bars from an atlas, in the words of a person."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.rows import Context, ContextToken, Example, Latent, TokenCount, TokenLogit
from sae_dist.atlas.schema import KEPT, LEFT_OUT, QUANTILES, TOP
from sae_dist.serve.words import number, one_in, piece, share, short

SHADES = 10
"""Steps of colour from no code to the greatest."""
STATES = {LEFT_OUT: "not encoded", None: "an outlier, not encoded"}


@dataclass(frozen=True)
class Piece:
    """A token as it is shown: its text, a class of the style sheet, and the words for it on demand."""

    text: str
    look: str
    words: str


@dataclass(frozen=True)
class Shown:
    """A context of a latent as it is shown."""

    latent: int
    code: str
    document: int
    at: int
    pieces: list[Piece]


@dataclass(frozen=True)
class Tab:
    """Contexts of one kind: those with the greatest codes, or of a bin of codes."""

    key: str
    title: str
    hint: str
    contexts: list[Shown]


@dataclass(frozen=True)
class Row:
    """A line of a table with a bar: what it is of, its values in words, and the bar's length of 100.

    Attributes:
        more: words on demand.
    """

    text: str
    values: tuple[str, ...]
    bar: int
    latent: int | None = None
    more: str = ""


def level(value: float, most: float) -> int:
    """Return the step of colour of a value: 0 for nothing, SHADES for the greatest."""
    if not value > 0 or not most > 0:
        return 0
    return min(SHADES, max(1, math.ceil(SHADES * min(value / most, 1.0))))


def shown(
    context: Context,
    latent: int,
    most: float,
    code: float | None = None,
    words: Callable[[str], str] = piece,
) -> Shown:
    """Return a context shaded by a latent's codes, its own place marked.

    Args:
        most: the code of the darkest shade.
        code: at the context's place; None: as the context says.
        words: makes a token's text what is shown.
    """
    own = next((token.code for token in context.tokens if token.at == context.at), 0.0)
    pieces = [_piece(token, most, token.at == context.at, words) for token in context.tokens]
    return Shown(latent, number(own if code is None else code), context.document, context.at, pieces)


def _piece(token: ContextToken, most: float, own: bool, shape: Callable[[str], str]) -> Piece:
    looks = [f"k{level(token.code, most)}"] if token.code > 0 else []
    words = [f"code {token.code:.6g}"] if token.code > 0 else []
    if token.state != KEPT:
        looks.append("out")
        words.append(STATES.get(token.state, STATES[None]))
    if own:
        looks.append("own")
    words += [f"token {token.id}", f"place {token.at:,}"]
    return Piece(shape(token.text), " ".join(looks), ", ".join(words))


def tabs(examples: Sequence[Example], latent: Latent) -> list[Tab]:
    """Return the contexts of a latent: those with the greatest codes, then bin by bin."""
    most = latent.most
    found = []
    for key in sorted({each.bin for each in examples}):
        own = [shown(each.context, latent.latent, most, each.code) for each in examples if each.bin == key]
        title, hint = _of_bin(key, latent)
        found.append(Tab("top" if key == TOP else f"bin{key}", title, hint, own))
    return found


def _of_bin(key: int, latent: Latent) -> tuple[str, str]:
    if key == TOP:
        return "Strongest", "The greatest codes, at most one context of a document."
    last = key == len(latent.bins) - 1
    high = number(latent.most / 2**key)
    low = "0" if last else number(latent.most / 2 ** (key + 1))
    many = f"{latent.bins[key]:,}" if key < len(latent.bins) else "some"
    words = f"A random sample of the {many} places with codes from {low} to {high}."
    return f"{low} – {high}", words


def token_rows(tokens: Sequence[TokenCount] | None, latent: Latent) -> list[Row]:
    """Return the tokens that a latent fires on, or that follow, by mutual information."""
    tokens = tokens or ()
    most = max((each.count for each in tokens), default=1) or 1
    return [
        Row(
            piece(each.text),
            (share(each.count / max(latent.count, 1)),),
            round(100 * each.count / most),
            more=f"{each.count:,} places, {number(each.bits)} bits of mutual information",
        )
        for each in tokens
    ]


def logit_rows(tokens: Sequence[TokenLogit] | None) -> list[Row]:
    """Return the tokens whose logits a latent changes most."""
    tokens = tokens or ()
    most = max((abs(each.logit) for each in tokens), default=1.0) or 1.0
    return [
        Row(piece(each.text), (number(each.logit),), round(100 * abs(each.logit) / most)) for each in tokens
    ]


def near_rows(latent: Latent, words: Mapping[int, str]) -> list[Row]:
    """Return the latents whose decoder rows are nearest."""
    return [
        Row(
            words.get(each.latent, ""),
            (number(each.cosine, 2),),
            round(100 * max(each.cosine, 0)),
            each.latent,
        )
        for each in latent.near or ()
    ]


def together_rows(latent: Latent, words: Mapping[int, str]) -> list[Row]:
    """Return the latents that fire at the same places."""
    return [
        Row(
            words.get(each.latent, ""),
            (share(each.share), f"{number(each.lift, 2)}×"),
            round(100 * min(each.share, 1.0)),
            each.latent,
        )
        for each in latent.together or ()
    ]


def numbers_of(latent: Latent, facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the numbers at the head of a latent's page: name, value, and more about it."""
    kept = int(facts.get("kept") or 0)
    return [
        ("fires on", f"{one_in(latent.rate)} tokens", f"{latent.count:,} of {kept:,}, {share(latent.rate)}"),
        ("in documents", short(latent.documents), f"of {short(int(facts.get('documents') or 0))}"),
        ("greatest code", number(latent.most), f"least {number(latent.least)}"),
        ("mean code", number(latent.mean), "where it fires"),
    ]


def quantile_rows(latent: Latent) -> list[tuple[str, str]]:
    """Return the quantiles of a latent's codes, named by percent."""
    return [
        (f"{100 * level:g}", number(value)) for level, value in zip(QUANTILES, latent.quantiles, strict=False)
    ]


def list_row(
    row: Mapping[str, Any], atlas: Atlas, label: Any, link: Callable[[int], str | None]
) -> dict[str, Any]:
    """Return a latent as the list shows it."""
    latent = int(row["latent"])
    texts = {
        key: [piece(atlas.words.token(each)) for each in row[key][:limit]]
        for key, limit in (("tokens", 4), ("up", 3))
    }
    return {
        "latent": latent,
        "link": link(latent),
        "label": label,
        "rate": one_in(row["rate"]),
        "share": share(row["rate"]),
        "count": f"{row['count']:,}",
        "documents": short(row["documents"]),
        "most": number(row["most"]),
        **texts,
    }
