"""The codes of single latents, from the groups of postings that hold them.

Letters: P codes, N places asked for, G groups of rows.
"""

from collections.abc import Callable

import numpy as np

from sae_dist.atlas.read.table import TableFile, numbers

COLUMNS = ("latent", "at", "code")


class Postings:
    """The inverted index of an atlas.

    Args:
        part: returns the file of a latent's part.
    """

    def __init__(self, part: Callable[[int], TableFile]):
        self.part = part

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places [P], uint32, and the codes [P], float32, of a latent, in the order of places.

        Raises:
            ConfigError: a file is damaged.
        """
        file = self.part(latent)
        return self._read(file, latent, file.groups_with("latent", latent, latent))

    def at(self, latent: int, at_N: np.ndarray) -> np.ndarray:
        """Return a latent's codes at some places [N], 0 where it is silent; reads only groups near them.

        Args:
            at_N: in ascending order.

        Raises:
            ConfigError: a file is damaged.
        """
        file = self.part(latent)
        groups_G = file.groups_with("latent", latent, latent)
        least_G, most_G = file.bounds("latent")
        first_G, last_G = file.bounds("at")
        # Of a group that other latents share, the range of places says nothing of this one.
        own_G = (least_G[groups_G] == latent) & (most_G[groups_G] == latent)
        near_G = np.searchsorted(at_N, first_G[groups_G]) < np.searchsorted(at_N, last_G[groups_G], "right")
        at_P, code_P = self._read(file, latent, groups_G[~own_G | near_G])
        code_N = np.zeros(len(at_N), np.float32)
        if len(at_P):
            place_N = np.minimum(np.searchsorted(at_P, at_N), len(at_P) - 1)
            code_N = np.where(at_P[place_N] == at_N, code_P[place_N], np.float32(0))
        return code_N

    @staticmethod
    def _read(file: TableFile, latent: int, groups_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = file.read(groups_G, COLUMNS)
        latent_P, at_P, code_P = (numbers(table, name) for name in COLUMNS)
        first, end = np.searchsorted(latent_P, [latent, latent + 1])
        return at_P[first:end], code_P[first:end]
