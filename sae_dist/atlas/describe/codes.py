"""Numbers about the codes of each latent, and its examples, from postings.

Letters: f some latents of a part; P codes, sorted by latent and place; J numbers of a list.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

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
    """

    first: int
    num: int
    latent_P: np.ndarray
    at_P: np.ndarray
    code_P: np.ndarray
    document_P: np.ndarray

    @staticmethod
    def of(latents: range, table: pa.Table, document_T: np.ndarray) -> "Codes":
        """Take the postings of some latents; `document_T` has the document of each place."""
        latent_P, at_P, code_P = (table[name].to_numpy() for name in ("latent", "at", "code"))
        first = np.uint32(latents.start)
        return Codes(latents.start, len(latents), latent_P - first, at_P, code_P, document_T[at_P])

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
        return self._reduced(np.maximum, self.code_P)

    @cached_property
    def documents_f(self) -> np.ndarray:
        """The number of documents in which each latent fires."""
        return np.bincount(self.latent_P[groups(self.latent_P, self.document_P)], minlength=self.num)

    def least_f(self) -> np.ndarray:
        """Return the least code of each latent, 0 of a silent one."""
        return self._reduced(np.minimum, self.code_P)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of each latent's codes, and of their squares."""
        code_P = self.code_P.astype(np.float64)
        return self._reduced(np.add, code_P), self._reduced(np.add, code_P * code_P)

    def quantiles(self) -> np.ndarray:
        """Return codes at QUANTILES of each latent that fires [latents, J], interpolated between two."""
        key_P = self.latent_P.astype(np.uint64) << HALF
        key_P |= _bits(self.code_P)
        key_P.sort()
        code_P = (key_P & LOW).astype(np.uint32).view(np.float32)
        count_f, begin_f = self.count_f[self.fires_f, None], self.begin_f[self.fires_f, None]
        place_fJ = np.array(QUANTILES) * (count_f - 1)
        low_fJ = place_fJ.astype(np.int64)
        high_fJ = np.minimum(low_fJ + 1, count_f - 1)
        below_fJ, above_fJ = (code_P[begin_f + each].astype(np.float64) for each in (low_fJ, high_fJ))
        return (below_fJ + (above_fJ - below_fJ) * (place_fJ - low_fJ)).astype(np.float32)

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
        return self._counted(self.bin_P(bins), bins)

    def examples(self, settings: Settings) -> dict[int, Selected]:
        """Choose examples, by bin: those with the greatest codes, and a random draw of every bin.

        A draw takes a latent's places of the bin in random order, leaving out documents that it has met: the
        first place is uniform over all, each next one over those of the other documents.
        """
        key_P = (~_bits(self.code_P) << HALF) | self.at_P
        found = {TOP: best_of_documents(self.latent_P, self.document_P, key_P, settings.top)}
        bin_P = self.bin_P(settings.bins)
        for number in range(settings.bins):
            inside_P = np.flatnonzero(bin_P == number)
            latent_P = self.latent_P[inside_P]
            key_P = hash64(latent_P + np.uint32(self.first), self.at_P[inside_P])
            chosen = best_of_documents(latent_P, self.document_P[inside_P], key_P, settings.each)
            found[number] = Selected(chosen.latent_S, chosen.rank_S, inside_P[chosen.which_S])
        return found

    def _reduced(self, how: np.ufunc, value_P: np.ndarray) -> np.ndarray:
        """Reduce each latent's values; 0 where it is silent (float64)."""
        found_f = np.zeros(self.num)
        if len(value_P):
            found_f[self.fires_f] = how.reduceat(value_P, self.begin_f[self.fires_f])
        return found_f

    def _counted(self, place_P: np.ndarray, places: int) -> np.ndarray:
        place_P = place_P + self.latent_P.astype(np.int64) * places
        return np.bincount(place_P, minlength=self.num * places).reshape(self.num, places)


def _bits(code_P: np.ndarray) -> np.ndarray:
    """Return the bits of positive numbers, which are in the numbers' order, as uint64."""
    return code_P.view(np.uint32).astype(np.uint64)
