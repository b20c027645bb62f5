"""The ways of finding latents, and which one a question takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.atlas.find.direction import by_direction, read_direction
from sae_dist.atlas.find.found import Found, Hit
from sae_dist.atlas.find.regex import MOST_TOKENS, by_regex
from sae_dist.atlas.find.text import by_text
from sae_dist.atlas.find.together import by_together
from sae_dist.atlas.find.tokens import by_token, by_words
from sae_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas

MOST = 10_000
LONGEST = 100_000


def find(
    atlas: "Atlas",
    text: str | None = None,
    *,
    token: str | int | None = None,
    regex: str | None = None,
    direction: Any = None,
    label: str | None = None,
    together: int | Sequence[int] | None = None,
    top: int = 20,
    exact: bool | None = None,
    tokens: int = MOST_TOKENS,
) -> Found:
    """Find latents in one of six ways; the answer says in words how it searched.

    Args:
        text: encoded with model and dictionary: latents by code times idf. Where the model cannot be had, the
            places of its words are looked up in place of that.
        token: the text of a token, with its space before it, or its id: latents that fire on it.
        regex: matches in the contexts of examples.
        direction: numbers [E], a .npy file with them, or a latent: nearest decoder rows.
        label: words of labels.
        together: a latent, or several: those that fire at the same places.
        top: how many to return, at most.
        exact: by token and co-firing: read all postings, which takes a second for about 35M; None: where
            there are few.
        tokens: by regex: tokens of the text that are looked at.

    Raises:
        ConfigError: not exactly one thing is asked, or it is not valid, or nothing has it.
    """
    asked = {
        "text": text,
        "token": token,
        "regex": regex,
        "direction": direction,
        "label": label,
        "together": together,
    }
    given = [key for key, value in asked.items() if value is not None]
    if len(given) != 1:
        said = f", not {' and '.join(given)}" if given else ""
        raise ConfigError(f"find takes one of {', '.join(asked)}{said}")
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= MOST:
        raise ConfigError(f"top={top}: give the number of latents to show, 1 to {MOST:,}")
    _check_text(given[0], asked[given[0]])
    if text is not None:
        return _by_text(atlas, text, top)
    if token is not None:
        return by_token(atlas, token, top, exact)
    if regex is not None:
        return by_regex(atlas, regex, top, tokens)
    if label is not None:
        return _by_label(atlas, label, top)
    if together is not None:
        return by_together(atlas, [together] if isinstance(together, int) else together, top, exact)
    if isinstance(direction, str | Path):
        direction = read_direction(Path(direction))
    return by_direction(atlas, direction, top)


def _check_text(key: str, value: Any) -> None:
    """Check that words to look for are there and are not a book.

    Raises:
        ConfigError: they are empty, or too many.
    """
    if isinstance(value, str) and not 0 < len(value) <= LONGEST:
        raise ConfigError(f"{key} has {len(value):,} characters; give 1 to {LONGEST:,}")


def _by_text(atlas: "Atlas", text: str, top: int) -> Found:
    """Find latents by encoding a text; without a model by where its words occur."""
    why = "no model was given"
    if atlas.encode is not None:
        try:
            return by_text(atlas, text, top, atlas.encode)
        except ConfigError as error:
            why = str(error)
    try:
        found = by_words(atlas, text, top)
    except ConfigError as error:
        raise ConfigError(f"{error}; and the text was not encoded: {why}") from None
    found.how += f". The text was not encoded: {why}"
    return found


def _by_label(atlas: "Atlas", words: str, top: int) -> Found:
    found = atlas.labels.search(words, top)
    hits = [Hit(label.latent, score) for label, score in found if label.latent < atlas.num_latents]
    return Found(atlas, "by the words of labels", "match", hits)
