"""The rows of an atlas's tables as Python values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_dist.atlas.read.words import Words


@dataclass(frozen=True)
class ContextToken:
    """A token of a context.

    Attributes:
        at: its place in the atlas's text.
        state: KEPT, LEFT_OUT or OUTLIER of `atlas.schema`.
        code: of the latent that the context is of; 0: it is silent there.
    """

    at: int
    id: int
    text: str
    state: int
    code: float


@dataclass(frozen=True)
class Context:
    """The tokens around a place, of the same segment.

    Attributes:
        at: the place.
        document: the number of the document.
    """

    at: int
    document: int
    tokens: tuple[ContextToken, ...]

    @property
    def text(self) -> str:
        """The text of all tokens."""
        return "".join(each.text for each in self.tokens)


@dataclass(frozen=True)
class Example:
    """A place where a latent fires.

    Attributes:
        bin: TOP of `atlas.schema`: one of the greatest codes; else the bin of codes that it was drawn from.
        rank: in its bin, from 0.
    """

    bin: int
    rank: int
    code: float
    context: Context


@dataclass(frozen=True)
class TokenCount:
    """A token on which a latent fires, or that follows where it does: how often, and how telling that is."""

    token: int
    text: str
    count: int
    bits: float


@dataclass(frozen=True)
class TokenLogit:
    """A token whose logit a latent changes, per unit of code."""

    token: int
    text: str
    logit: float


@dataclass(frozen=True)
class Near:
    """A latent whose decoder row points nearly the same way."""

    latent: int
    cosine: float


@dataclass(frozen=True)
class Together:
    """A latent that fires at the same places: at what share of them, and at how many times that by chance."""

    latent: int
    share: float
    lift: float


@dataclass(frozen=True)
class Latent:
    """All that an atlas says of a latent, in the columns of its table of latents.

    Lists are None where the atlas was made without them.
    """

    latent: int
    count: int
    documents: int
    rate: float
    sum: float
    squares: float
    least: float
    most: float
    quantiles: tuple[float, ...]
    histogram: tuple[int, ...]
    bins: tuple[int, ...]
    tokens: tuple[TokenCount, ...] | None
    next: tuple[TokenCount, ...] | None
    up: tuple[TokenLogit, ...] | None
    down: tuple[TokenLogit, ...] | None
    lens_up: tuple[TokenLogit, ...] | None
    lens_down: tuple[TokenLogit, ...] | None
    near: tuple[Near, ...] | None
    together: tuple[Together, ...] | None

    @property
    def mean(self) -> float:
        """The mean of its codes where it fires; 0: it never does."""
        return self.sum / self.count if self.count else 0.0


COUNTS, LOGITS = ("tokens", "next"), ("up", "down", "lens_up", "lens_down")
NUMBERS = ("quantiles", "histogram", "bins")
ZERO = ("count", "documents", "rate", "sum", "squares", "least", "most")


def latent_of(row: Mapping[str, Any], words: Words) -> Latent:
    """Return a row of the table of latents, with the text of its tokens."""
    found: dict[str, Any] = {"latent": row["latent"], **{key: row[key] or 0 for key in ZERO}}
    found |= {key: tuple(row[key] or ()) for key in NUMBERS}
    for key in (*COUNTS, *LOGITS):
        kind = TokenCount if key in COUNTS else TokenLogit
        each = row[key]
        found[key] = (
            None if each is None else tuple(kind(text=words.token(one["token"]), **one) for one in each)
        )
    found["near"] = None if row["near"] is None else tuple(Near(**one) for one in row["near"])
    together = row["together"]
    found["together"] = None if together is None else tuple(Together(**one) for one in together)
    return Latent(**found)
