"""Latents found by tokens: those whose firing says most about being at a token, or within some words.

Letters: T places; V tokens of the vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sae_dist.atlas.find.found import Found, Hit
from sae_dist.atlas.find.scan import fired_at, informative, kept_of, seconds
from sae_dist.atlas.read.table import numbers
from sae_dist.atlas.schema import LATENTS, parts
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import visible

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas

QUICK_POSTINGS = 1 << 26
"""Postings that are read without being asked for: it takes a second or two."""
LONGEST = 64


def by_token(atlas: "Atlas", token: str | int, top: int, exact: bool | None) -> Found:
    """Find latents by a token, or by several in a row.

    Args:
        token: its text, with the space before it if there is one, or its id.
        exact: read all postings; None: if there are few.

    Raises:
        ConfigError: the text cannot be made tokens, or does not occur.
    """
    ids = [int(token)] if isinstance(token, int) else atlas.words.ids(token)
    if not 0 < len(ids) <= LONGEST:
        raise ConfigError(f"{visible(str(token)[:40], '')!r} has {len(ids)} tokens; give 1 to {LONGEST}")
    named = visible("".join(atlas.words.token(each) for each in ids), "")
    if len(ids) == 1 and (exact is False or exact is None and atlas.counts.sum() > QUICK_POSTINGS):
        found = _from_lists(atlas, ids[0], top, named)
        if found.hits or exact is False:
            return found
    return by_sequences(atlas, [ids], top, f"the token{'s' * (len(ids) > 1)} {named!r}")


def by_words(atlas: "Atlas", words: str, top: int) -> Found:
    """Find latents by words as they stand in the text, in any case; it needs no model.

    Where they do not occur in a row, each of them is looked up.

    Raises:
        ConfigError: they cannot be made tokens, or do not occur.
    """
    shown = visible(words, "")
    try:
        return by_sequences(atlas, _forms(atlas, [words]), top, f"the words {shown!r}, in any case")
    except ConfigError:
        if len(each := words.split()) < 2:
            raise
    return by_sequences(atlas, _forms(atlas, each), top, f"any of the words of {shown!r}, in any case")


def by_sequences(atlas: "Atlas", sequences: Sequence[Sequence[int]], top: int, what: str) -> Found:
    """Find latents by the places of sequences of tokens, each within a segment, by all postings.

    Raises:
        ConfigError: none occurs where there is an activation.
    """
    chosen_T = _occurrences(atlas, sequences)
    places = kept_of(atlas, chosen_T)
    if not places:
        raise ConfigError(f"nowhere in the {atlas.facts['kept']:,} tokens of the atlas: {what}")
    both_F = fired_at(atlas, chosen_T)
    latents, score = informative(atlas, both_F, places, top)
    hits = [
        Hit(int(latent), float(value), {"both": int(both_F[latent]), "of": places})
        for latent, value in zip(latents, score, strict=True)
    ]
    how = f"by mutual information, in bits, of firing with {what}: {places:,} places, exact, by all postings"
    return Found(atlas, how, "bits", hits)


def _forms(atlas: "Atlas", texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts in lower and upper case, at the beginning of a text and within it.

    Raises:
        ConfigError: there is no tokenizer, or a text has no token, or very many.
    """
    found: dict[tuple[int, ...], None] = {}
    for text in texts:
        for form in (text, text.lower(), text.title(), text.capitalize(), text.upper()):
            for each in (form, f" {form}"):
                ids = atlas.words.ids(each)
                if not 0 < len(ids) <= LONGEST:
                    raise ConfigError(f"{visible(text[:40], '')!r} is no text of 1 to {LONGEST} tokens")
                found[tuple(ids)] = None
    return [list(ids) for ids in found]


def _from_lists(atlas: "Atlas", token: int, top: int, named: str) -> Found:
    """Find latents that have a token in their list of tokens."""
    found: list[tuple[float, int, int]] = []
    columns = [f"tokens.list.element.{name}" for name in ("token", "count", "bits")]
    for part in range(parts(atlas.num_latents)):
        for table in atlas.table(LATENTS, part).batches(["latent", *columns]):
            lists = table.column("tokens").combine_chunks()
            token_S, count_S, bits_S = (field.to_numpy() for field in lists.flatten().flatten())
            which = np.flatnonzero(token_S == token)
            row = np.searchsorted(lists.offsets.to_numpy() - lists.offsets[0].as_py(), which, "right") - 1
            latents = numbers(table, "latent")[row].tolist()
            found += zip((-bits_S[which]).tolist(), latents, count_S[which].tolist(), strict=True)
    found.sort()
    hits = [Hit(latent, -bits, {"both": count}) for bits, latent, count in found[:top]]
    how = (
        f"by mutual information, in bits, of firing with the token {named!r}, where it is in a latent's list "
        f"of tokens; all latents by all postings: exact, about {seconds(atlas):.0f} s"
    )
    return Found(atlas, how, "bits", hits)


def _occurrences(atlas: "Atlas", sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Return which places [T] are of an occurrence of a sequence; special tokens may be within none."""
    chosen_T = np.zeros(len(atlas.places), bool)
    longest = max(map(len, sequences))
    token_T, position_T, first = np.empty(0, np.uint32), np.empty(0, np.uint32), 0
    for table in atlas.places.table.batches(["token", "position"]):
        # The end of the batch before stays, for what begins there.
        kept = min(len(token_T), longest - 1)
        first += len(token_T) - kept
        token_T = np.concatenate([token_T[len(token_T) - kept :], numbers(table, "token")])
        position_T = np.concatenate([position_T[len(position_T) - kept :], numbers(table, "position")])
        for ids in sequences:
            begin = _begins(token_T, position_T, ids)
            for step in range(len(ids)):
                chosen_T[first + begin + step] = True
    return chosen_T


def _begins(token_T: np.ndarray, position_T: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Return where a sequence begins."""
    begin = np.flatnonzero(token_T[: len(token_T) - len(ids) + 1] == ids[0])
    for step in range(1, len(ids)):
        same = (token_T[begin + step] == ids[step]) & (position_T[begin + step] > 0)
        begin = begin[same]
    return begin
