"""Numbers about the codes of each latent, and its examples, from postings.

Letters: f some latents of a part; g those that fire; P codes, sorted by latent and place; J numbers of a
list.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from sae_dist.atlas.describe.blocks import RUN
from sae_dist.atlas.describe.hashing import hash64
from sae_dist.atlas.describe.select import Selected, best_of_documents, groups
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.schema import HISTOGRAM, QUANTILES, TOP

LOW = np.uint64(2**32 - 1)
HALF = np.uint64(32)


@dataclass(frozen=True)
class Codes:
    """The postings of some latents.

    Attributes:
        first: the number of the first latent; num: how many latents it has.
        latent_P: counted from `first`; code_P: above zero.
        greatest_f: the greatest code of each latent; None: that of these codes.
    """

    first: int
    num: int
    latent_P: np.ndarray
    at_P: np.ndarray
    code_P: np.ndarray
    document_P: np.ndarray
    greatest_f: np.ndarray | None = None

    @staticmethod
    def of(
        latents: range, table: pa.Table, document_T: np.ndarray, greatest_f: np.ndarray | None = None
    ) -> "Codes":
        """Take the postings of some latents; `document_T` has the document of each place."""
        latent_P, at_P, code_P = (table[name].to_numpy() for name in ("latent", "at", "code"))
        latent_P = latent_P - np.uint32(latents.start)
        return Codes(latents.start, len(latents), latent_P, at_P, code_P, document_T[at_P], greatest_f)

    @cached_property
    def count_f(self) -> np.ndarray:
        """The number of each latent's codes."""
        return np.bincount(self.latent_P, minlength=self.num)

    @cached_property
    def begin_f(self) -> np.ndarray:
        """The place of each latent's first code."""
        return np.cumsum(self.count_f) - self.count_f

    @cached_property
    def fires_f(self) -> np.ndarray:
        """A mask of the latents that have a code."""
        return self.count_f > 0

    @cached_property
    def most_f(self) -> np.ndarray:
        """The greatest code of each latent, 0 of a silent one (float64)."""
        return self._reduced(np.maximum, self.code_P) if self.greatest_f is None else self.greatest_f

    @cached_property
    def documents_f(self) -> np.ndarray:
        """The number of documents in which each latent fires."""
        return np.bincount(self.latent_P[groups(self.latent_P, self.document_P)], minlength=self.num)

    def least_f(self) -> np.ndarray:
        """Return the least code of each latent, 0 of a silent one."""
        return self._reduced(np.minimum, self.code_P)

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of codes, and of their squares, over runs of RUN codes of a latent, in order."""
        code_P = self.code_P.astype(np.float64)
        begin = self._run_begins()
        if len(begin) == 0:
            return np.zeros(0), np.zeros(0)
        return np.add.reduceat(code_P, begin), np.add.reduceat(code_P * code_P, begin)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of each latent's codes, and of their squares."""
        runs_f = -(-self.count_f // RUN)
        begin_g = (np.cumsum(runs_f) - runs_f)[self.fires_f]
        totals = []
        for run in self.runs():
            total_f = np.zeros(self.num)
            if len(run):
                total_f[self.fires_f] = np.add.reduceat(run, begin_g)
            totals.append(total_f)
        return totals[0], totals[1]

    def _run_begins(self) -> np.ndarray:
        """Return where the runs of all latents begin."""
        runs_f = -(-self.count_f // RUN)
        within = np.arange(runs_f.sum()) - np.repeat(np.cumsum(runs_f) - runs_f, runs_f)
        return np.repeat(self.begin_f, runs_f) + within * RUN

    def quantiles(self) -> np.ndarray:
        """Return codes at QUANTILES of each latent that fires [latents, J], interpolated between two."""
        key_P = self.latent_P.astype(np.uint64) << HALF
        key_P |= bits_of(self.code_P)
        key_P.sort()
        code_P = (key_P & LOW).astype(np.uint32).view(np.float32)
        count_g1, begin_g1 = self.count_f[self.fires_f, None], self.begin_f[self.fires_f, None]
        low_gJ, high_gJ = places_of(count_g1)
        return interpolated(count_g1, code_P[begin_g1 + low_gJ], code_P[begin_g1 + high_gJ])

    def histogram(self) -> np.ndarray:
        """Count each latent's codes in HISTOGRAM equal bins from 0 to its greatest code [f, J]."""
        place_P = self.code_P / self.most_f[self.latent_P] * HISTOGRAM
        place_P = np.minimum(place_P.astype(np.int64), HISTOGRAM - 1)
        return self._counted(place_P, HISTOGRAM)

    def bin_P(self, bins: int) -> np.ndarray:
        """Return the bin of each code, by halvings of its latent's greatest."""
        most_P = self.most_f[self.latent_P]
        found_P = np.zeros(len(self.code_P), np.int64)
        for halvings in range(1, bins):
            found_P += self.code_P <= np.ldexp(most_P, -halvings)
        return found_P

    def in_bins(self, bins: int) -> np.ndarray:
        """Count each latent's codes in every bin of the examples [f, J]."""
        return self._counted(self._bins(bins), bins)

    def examples(self, settings: Settings) -> dict[int, Selected]:
        """Choose examples, by bin: those with the greatest codes, and a random draw of every bin.

        A draw takes a latent's places of the bin in random order, leaving out documents that it has met: the
        first place is uniform over all, each next one over those of the other documents.
        """
        found = {}
        for number in (TOP, *range(settings.bins)):
            inside_P, key_P = self._keys(number, settings)
            num = settings.top if number == TOP else settings.each
            chosen = best_of_documents(self.latent_P[inside_P], self.document_P[inside_P], key_P, num)
            found[number] = Selected(chosen.latent_S, chosen.rank_S, inside_P[chosen.which_S])
        return found

    def chosen(self, number: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Return keys and numbers of the codes that `examples` chooses of a bin; there is one latent."""
        inside_P, key_P = self._keys(number, settings)
        num = settings.top if number == TOP else settings.each
        which = best_of_documents(self.latent_P[inside_P], self.document_P[inside_P], key_P, num).which_S
        return key_P[which], inside_P[which]

    def _keys(self, number: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of a bin, and keys by which they are chosen, the least first."""
        if number == TOP:
            bits_P = bits_of(self.code_P).astype(np.uint64)
            return np.arange(len(bits_P)), (~bits_P << HALF) | self.at_P
        inside_P = np.flatnonzero(self._bins(settings.bins) == number)
        return inside_P, hash64(self.latent_P[inside_P] + np.uint32(self.first), self.at_P[inside_P])

    def _bins(self, bins: int) -> np.ndarray:
        """Return `bin_P`, which is computed once."""
        if bins not in self._bins_by_number:
            self._bins_by_number[bins] = self.bin_P(bins)
        return self._bins_by_number[bins]

    @cached_property
    def _bins_by_number(self) -> dict[int, np.ndarray]:
        return {}

    def _reduced(self, how: np.ufunc, value_P: np.ndarray) -> np.ndarray:
        """Reduce each latent's values; 0 where it is silent (float64)."""
        found_f = np.zeros(self.num)
        if len(value_P):
            found_f[self.fires_f] = how.reduceat(value_P, self.begin_f[self.fires_f])
        return found_f

    def _counted(self, place_P: np.ndarray, places: int) -> np.ndarray:
        place_P = place_P + self.latent_P.astype(np.int64) * places
        return np.bincount(place_P, minlength=self.num * places).reshape(self.num, places)


def bits_of(code_P: np.ndarray) -> np.ndarray:
    """Return the bits of positive numbers, which are in the numbers' order, as uint32."""
    return code_P.view(np.uint32)


def places_of(count_g1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places, in ascending order of codes, between which each of QUANTILES lies [g, J]."""
    low_gJ = (np.array(QUANTILES) * (count_g1 - 1)).astype(np.int64)
    return low_gJ, np.minimum(low_gJ + 1, count_g1 - 1)


def interpolated(count_g1: np.ndarray, below_gJ: np.ndarray, above_gJ: np.ndarray) -> np.ndarray:
    """Return codes at QUANTILES [g, J] from those at `places_of`."""
    place_gJ = np.array(QUANTILES) * (count_g1 - 1)
    below_gJ, above_gJ = below_gJ.astype(np.float64), above_gJ.astype(np.float64)
    return (below_gJ + (above_gJ - below_gJ) * (place_gJ - place_gJ.astype(np.int64))).astype(np.float32)
