"""Latents found by a regular expression in the contexts of their examples.

The text is decoded once, segment by segment, and every match in it marked; then examples are counted whose
context has one. Expressions are RE2's, which take time in proportion to the text, whatever they say.
Letters: T tokens; S segments; N examples; F latents.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sae_dist.atlas.find.found import Found, Hit
from sae_dist.atlas.read.places import Stretch
from sae_dist.atlas.read.table import numbers
from sae_dist.atlas.schema import EXAMPLES, parts
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line, visible

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas

MOST_TOKENS = 20_000_000
"""Tokens from the beginning of the text that are looked at, unless told otherwise."""
LONGEST_PATTERN = 1000
AT_ONCE = 1 << 18
BEGIN, END = "\x01", "\x02"
"""Marks around a match, which texts are freed of before."""
LEFT, RIGHT = 16, 8


def by_regex(atlas: "Atlas", pattern: str, top: int, tokens: int = MOST_TOKENS) -> Found:
    """Find latents in whose examples a match is more frequent than in contexts at large.

    Args:
        tokens: how many of the text are looked at, from its beginning.

    Raises:
        ConfigError: the pattern is none of RE2's, matches nothing, or tokens have no text here.
    """
    check_pattern(pattern)
    if atlas.words.lacking is not None:
        raise ConfigError(f"a pattern needs the text of tokens, which is not here: {atlas.words.lacking}")
    looked = min(tokens, len(atlas.places))
    matched_T, begins_S = np.zeros(looked + 1, np.int32), [np.empty(0, np.int64)]
    texts = _Texts(atlas)
    for stretch in _segments(atlas, looked):
        begin_S = np.flatnonzero(stretch.position_T == 0)
        begins_S.append(stretch.first + begin_S)
        begin_S = np.union1d(0, begin_S)  # a very long segment is read in parts
        for one, last in texts.matches(stretch.token_T, begin_S, pattern):
            matched_T[stretch.first + one + 1 : stretch.first + last + 2] = 1
    end = int(np.count_nonzero(matched_T))
    if not end:
        raise ConfigError(f"{visible(pattern[:60], '')!r} matches nowhere in {looked:,} tokens of the text")
    inside = _Inside(np.cumsum(matched_T, dtype=np.int64), np.concatenate(begins_S), looked)
    with_F, all_F = _examples(atlas, inside)
    chance = inside.share()
    return _ranked(atlas, with_F, all_F, chance, top, f"{looked:,} of {len(atlas.places):,} tokens")


def check_pattern(pattern: str) -> None:
    """Check that a pattern is one that RE2 reads.

    Raises:
        ConfigError: it is not, or is very long.
    """
    if not 0 < len(pattern) <= LONGEST_PATTERN:
        raise ConfigError(f"the pattern has {len(pattern):,} characters; give 1 to {LONGEST_PATTERN:,}")
    try:
        pc.match_substring_regex(pa.array(["a"]), pattern)
    except (pa.ArrowException, UnicodeError) as error:
        said = first_line(error).removeprefix("Invalid regular expression: ")
        raise ConfigError(f"{visible(pattern[:60], '')!r} is no regular expression: {said}") from None


class _Texts:
    """The text of segments, joined from the texts of tokens; a token's is made once."""

    def __init__(self, atlas: "Atlas"):
        self._words, self._known = atlas.words, dict[int, str]()
        (self._anchor, *_) = atlas.words.ids("a") or [0]

    def matches(self, token_T: np.ndarray, begin_S: np.ndarray, pattern: str) -> Iterator[tuple[int, int]]:
        """Yield the first and the last token of every match within a segment, and not of empty ones."""
        ids, place_T = np.unique(token_T, return_inverse=True)
        piece_T = pa.array([self._piece(each) for each in ids.tolist()]).take(pa.array(place_T))
        offsets = pa.array(np.append(begin_S, len(token_T)), pa.int32())
        text_S = pc.binary_join(pa.ListArray.from_arrays(offsets, piece_T), "")
        marked_S = pc.replace_substring_regex(text_S, pattern=pattern, replacement=rf"{BEGIN}\0{END}")
        end_T = np.cumsum(pc.binary_length(piece_T).to_numpy())
        for segment in np.flatnonzero(pc.match_substring(marked_S, BEGIN).to_numpy(zero_copy_only=False)):
            first = int(end_T[begin_S[segment] - 1]) if begin_S[segment] else 0
            for begin, end in _marks(marked_S[int(segment)].as_py()):
                one = np.searchsorted(end_T, first + begin, "right")
                yield int(one), int(np.searchsorted(end_T, first + end - 1, "right"))

    def _piece(self, token: int) -> str:
        """Return what a token adds to a text that goes before it."""
        if token not in self._known:
            whole, alone = (self._words.pieces(ids) for ids in ((self._anchor, token), (self._anchor,)))
            text = "".join(whole)[len("".join(alone)) :]
            self._known[token] = text.replace(BEGIN, "?").replace(END, "?")
        return self._known[token]


def _marks(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each marked stretch begins and ends, in bytes of the text without marks; no empty one."""
    at = 0
    for number, piece in enumerate(text.replace(END, BEGIN).split(BEGIN)):
        begin, at = at, at + len(piece.encode())
        if number % 2 and at > begin:
            yield begin, at


class _Inside:
    """An answer to: does the context of a place have a matched token?

    Args:
        before_T: how many matched tokens there are before each place.
        begins_S: where segments begin.
    """

    def __init__(self, before_T: np.ndarray, begins_S: np.ndarray, looked: int):
        self._before_T, self._looked = before_T, looked
        self._begins_S = np.append(begins_S, looked)

    def __call__(self, at_N: np.ndarray) -> np.ndarray:
        """Return whether each place's context has one [N]."""
        segment_N = np.searchsorted(self._begins_S, at_N, "right")
        low_N = np.maximum(at_N - LEFT, self._begins_S[segment_N - 1])
        high_N = np.minimum(at_N + RIGHT + 1, self._begins_S[np.minimum(segment_N, len(self._begins_S) - 1)])
        return self._before_T[high_N] > self._before_T[low_N]

    def reaches(self, at_N: np.ndarray) -> np.ndarray:
        """Return which places were looked at [N]."""
        return at_N < self._looked

    def share(self) -> float:
        """Return the share of all places whose context has a match."""
        found = [
            int(np.count_nonzero(self(np.arange(first, min(first + AT_ONCE, self._looked)))))
            for first in range(0, self._looked, AT_ONCE)
        ]
        return sum(found) / self._looked


def _segments(atlas: "Atlas", looked: int) -> Iterator[Stretch]:
    """Yield stretches of whole segments, in order, as far as the text is looked at."""
    first = 0
    while first < looked:
        end = min(first + AT_ONCE, looked)
        stretch = atlas.places.stretch(first, end)
        begins = np.flatnonzero(stretch.position_T == 0)
        if end < looked and len(begins) and begins[-1]:
            end = first + int(begins[-1])
        yield stretch.part(first, end)
        first = end


def _examples(atlas: "Atlas", inside: _Inside) -> tuple[np.ndarray, np.ndarray]:
    """Return how many examples of each latent have a match, and how many there are [F]."""
    with_F, all_F = (np.zeros(atlas.num_latents, np.int64) for _ in range(2))
    for part in range(parts(atlas.num_latents)):
        for table in atlas.table(EXAMPLES, part).batches(["latent", "at"]):
            latent_N, at_N = numbers(table, "latent").astype(np.int64), numbers(table, "at").astype(np.int64)
            there_N = inside.reaches(at_N) & (latent_N < atlas.num_latents)
            latent_N, at_N = latent_N[there_N], at_N[there_N]
            all_F += np.bincount(latent_N, minlength=atlas.num_latents)
            with_F += np.bincount(latent_N[inside(at_N)], minlength=atlas.num_latents)
    return with_F, all_F


def _ranked(
    atlas: "Atlas", with_F: np.ndarray, all_F: np.ndarray, chance: float, top: int, looked: str
) -> Found:
    """Rank latents by how much likelier their own share of matches makes their examples than chance does."""
    some = np.flatnonzero(with_F > chance * all_F)
    n, m = with_F[some].astype(np.float64), all_F[some].astype(np.float64)
    share, rest = n / m, m - n
    score = n * np.log2(share / chance)
    score += rest * np.log2(np.divide(1 - share, 1 - chance, out=np.ones_like(share), where=rest > 0))
    order = np.lexsort((some, -score))[:top]
    hits = [
        Hit(int(some[each]), float(score[each]), {"both": int(n[each]), "of": int(m[each])}) for each in order
    ]
    how = (
        f"by matches in the contexts of examples, {LEFT} tokens before and {RIGHT} after, in bits of "
        f"evidence against the {chance:.2g} of all contexts that have one; {looked} were looked at"
    )
    return Found(atlas, how, "bits", hits)
