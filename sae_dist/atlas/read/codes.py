"""The codes of single latents, from the groups of postings that hold them.

Letters: P codes, N places asked for, G groups of rows.
"""

from bisect import bisect_right
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
        # All groups between the outer two are this latent's alone: places ascend through them.
        inner = groups_G[1:-1].tolist()
        near = set()
        for at in at_N.tolist() if inner else ():
            number = bisect_right(inner, at, key=lambda group: file.ends(group, "at")[0]) - 1
            near.add(inner[max(number, 0)])
        wanted = sorted({*groups_G[:1].tolist(), *near, *groups_G[-1:].tolist()})
        at_P, code_P = self._read(file, latent, np.array(wanted, np.int64))
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
