"""Numbers, lists and examples of one latent whose postings do not fit into memory: read twice, in pieces.

They are to the bit those of `About.of`.

Letters: f one latent; g the same; P codes of a piece; Q chosen ones; V tokens of the vocabulary; J numbers
of a list.
"""

from dataclasses import dataclass

import numpy as np

from sae_dist.atlas.describe.about import About, Examples, Lists
from sae_dist.atlas.describe.blocks import Block
from sae_dist.atlas.describe.codes import Codes, bits_of, interpolated, places_of
from sae_dist.atlas.describe.information import ranked_tokens
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.describe.text import NO_TOKEN, Text
from sae_dist.atlas.schema import HISTOGRAM, TOP

HIGH_HALF, LOW_HALF = np.uint32(16), np.uint32(2**16 - 1)
CASES = 1 << 16


@dataclass
class Chosen:
    """The best codes of one latent so far, one a document, best first."""

    num: int
    key_Q: np.ndarray
    at_Q: np.ndarray
    code_Q: np.ndarray
    document_Q: np.ndarray

    @classmethod
    def none(cls, num: int) -> "Chosen":
        """Return a choice of no codes yet."""
        kinds = (np.uint64, np.uint32, np.float32, np.uint32)
        return cls(num, *(np.zeros(0, kind) for kind in kinds))

    def take(self, codes: Codes, key_Q: np.ndarray, which_Q: np.ndarray) -> None:
        """Take the best codes of a piece, of which each document has one at most."""
        mine = (self.key_Q, self.at_Q, self.code_Q, self.document_Q)
        more = (key_Q, codes.at_P[which_Q], codes.code_P[which_Q], codes.document_P[which_Q])
        columns = [np.concatenate(each) for each in zip(mine, more, strict=True)]
        order_Q = np.argsort(columns[0])
        # Of a document that a piece's end cuts in two, only the better code counts.
        _, first_Q = np.unique(columns[3][order_Q], return_index=True)
        best_Q = order_Q[np.sort(first_Q)][: self.num]
        self.key_Q, self.at_Q, self.code_Q, self.document_Q = (each[best_Q] for each in columns)


class FirstReading:
    """The numbers of a latent that need no other: counts, sums, extremes, tokens, greatest codes."""

    def __init__(self, text: Text, settings: Settings):
        self._text = text
        self.count = self.documents = 0
        self._last_document = -1
        self._runs: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self.least, self.most = np.inf, 0.0
        self.high_J = np.zeros(CASES, np.int64)
        self.token_V = np.zeros(len(text.count_V), np.int64)
        self.next_V = np.zeros(len(text.followed_V), np.int64)
        self.top = Chosen.none(settings.top)

    def take(self, codes: Codes, settings: Settings) -> None:
        """Count a piece of the postings, the next one."""
        self.count += len(codes.code_P)
        self.documents += int(codes.documents_f[0]) - int(codes.document_P[0] == self._last_document)
        self._last_document = int(codes.document_P[-1])
        for runs, found in zip(self._runs, codes.runs(), strict=True):
            runs.append(found)
        self.least = min(self.least, float(codes.least_f()[0]))
        self.most = max(self.most, float(codes.most_f[0]))
        self.high_J += np.bincount(bits_of(codes.code_P) >> HIGH_HALF, minlength=CASES)
        self.token_V += np.bincount(self._text.token_T[codes.at_P], minlength=len(self.token_V))
        follower_P = self._text.follower_T[codes.at_P]
        self.next_V += np.bincount(follower_P[follower_P != NO_TOKEN], minlength=len(self.next_V))
        self.top.take(codes, *codes.chosen(TOP, settings))

    def sums(self) -> list[np.ndarray]:
        """Return the sums of the codes and of their squares [1]."""
        return [np.add.reduceat(np.concatenate(runs), [0]) for runs in self._runs]

    def lists(self, settings: Settings) -> tuple[Lists, Lists]:
        """Return the tokens it fires on, and those that follow."""
        return (
            _tokens(self.token_V, self._text.count_V, self.count, settings.tokens),
            _tokens(self.next_V, self._text.followed_V, int(self.next_V.sum()), settings.next),
        )


def _tokens(both_V: np.ndarray, count_V: np.ndarray, fires: int, num: int) -> Lists:
    token_Q = np.flatnonzero(both_V)
    of_one_Q = np.zeros(len(token_Q), np.uint32)
    return ranked_tokens(
        of_one_Q, token_Q.astype(np.uint64), both_V[token_Q], count_V, np.array([fires]), num
    )


def about_split(block: Block, text: Text, settings: Settings) -> About:
    """Compute what the postings of one latent say, with a piece of them in memory."""
    first = FirstReading(text, settings)
    for table in block.pieces():
        first.take(Codes.of(block.latents, table, text.document_T), settings)
    most_f = np.array([first.most])
    place_J = np.concatenate(places_of(np.array([[first.count]]))[:2], axis=1)[0]
    above_J = np.cumsum(first.high_J)
    high_J = np.searchsorted(above_J, place_J, side="right")
    low = {int(high): np.zeros(CASES, np.int64) for high in high_J}
    histogram_fJ, bins_fJ = np.zeros((1, HISTOGRAM), np.int64), np.zeros((1, settings.bins), np.int64)
    drawn = {number: Chosen.none(settings.each) for number in range(settings.bins)}
    for table in block.pieces():
        codes = Codes.of(block.latents, table, text.document_T, most_f)
        histogram_fJ += codes.histogram()
        bins_fJ += codes.in_bins(settings.bins)
        for number, chosen in drawn.items():
            chosen.take(codes, *codes.chosen(number, settings))
        bits_P = bits_of(codes.code_P)
        for high, low_J in low.items():
            low_J += np.bincount(bits_P[(bits_P >> HIGH_HALF) == high] & LOW_HALF, minlength=CASES)
    code_J = np.array(
        [_nth(first.high_J, low, int(high), int(n)) for high, n in zip(high_J, place_J, strict=True)]
    )
    tokens, after = first.lists(settings)
    total_f, squares_f = first.sums()
    return About(
        count_f=np.array([first.count]),
        documents_f=np.array([first.documents]),
        total_f=total_f,
        squares_f=squares_f,
        least_f=np.array([first.least]),
        most_f=most_f,
        quantiles_gJ=interpolated(np.array([[first.count]]), *np.split(code_J[None], 2, axis=1)),
        histogram_fJ=histogram_fJ,
        bins_fJ=bins_fJ,
        tokens=tokens,
        next=after,
        examples=_joined({TOP: first.top} | drawn),
    )


def _nth(high_J: np.ndarray, low: dict[int, np.ndarray], high: int, number: int) -> float:
    """Return the code with `number` smaller ones before it, whose bits have a known high half."""
    number -= int(high_J[:high].sum())
    bits = high << 16 | int(np.searchsorted(np.cumsum(low[high]), number, side="right"))
    return float(np.array(bits, np.uint32).view(np.float32))


def _joined(chosen: dict[int, Chosen]) -> Examples:
    sizes = [len(each.at_Q) for each in chosen.values()]
    return Examples(
        latent_S=np.zeros(sum(sizes), np.uint32),
        bin_S=np.repeat(list(chosen), sizes),
        rank_S=np.concatenate([np.arange(size) for size in sizes]),
        at_S=np.concatenate([each.at_Q for each in chosen.values()]),
        code_S=np.concatenate([each.code_Q for each in chosen.values()]),
        document_S=np.concatenate([each.document_Q for each in chosen.values()]),
    )
