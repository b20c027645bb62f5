"""The number of chosen places at which each latent fires, from all postings: exact, whatever lists hold.

Letters: T places of the text; F latents.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from sae_dist.atlas.describe.information import bits
from sae_dist.atlas.read.table import numbers
from sae_dist.atlas.schema import KEPT, POSTINGS, part_latents, parts

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas

THREADS = 2
AT_ONCE = 1 << 19
PER_SECOND = 35_000_000
"""Postings that two cores read in a second, for telling how long it takes; see docs/python.md."""


def fired_at(atlas: "Atlas", chosen_T: np.ndarray) -> np.ndarray:
    """Return at how many of the chosen places each latent fires [F], int64. Reads every posting.

    Args:
        chosen_T: which places.

    Raises:
        ConfigError: a file is damaged.
    """
    each = part_latents(atlas.num_latents)
    both_F = np.zeros(parts(atlas.num_latents) * each, np.int64)

    def count(part: int) -> None:
        first = part * each
        for table in atlas.table(POSTINGS, part).batches(["latent", "at"], AT_ONCE):
            at_P = numbers(table, "at")
            there_P = chosen_T[np.minimum(at_P, len(chosen_T) - 1)]
            latent_P = numbers(table, "latent")[there_P].astype(np.int64) - first
            both_F[first : first + each] += np.bincount(latent_P.clip(0, each - 1), minlength=each)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(count, range(parts(atlas.num_latents))))
    return both_F[: atlas.num_latents]


def kept_of(atlas: "Atlas", chosen_T: np.ndarray) -> int:
    """Return how many of the chosen places have an activation that counts."""
    count, first = 0, 0
    for table in atlas.places.table.batches(["state"]):
        state_T = numbers(table, "state")
        count += int(np.count_nonzero(chosen_T[first : first + len(state_T)] & (state_T == KEPT)))
        first += len(state_T)
    return count


def informative(atlas: "Atlas", both_F: np.ndarray, places: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank latents by mutual information with being at one of the places, of those that prefer them.

    Args:
        both_F: at how many of them each fires.
        places: how many there are that count.

    Returns:
        Latents, best first (the lower one among equals), and the bits of each.
    """
    count_F, kept = atlas.counts, int(atlas.facts["kept"])
    some = np.flatnonzero(both_F * float(max(kept, 1)) > count_F * float(places))
    bits_some = bits(both_F[some], places, count_F[some], kept).clip(min=0)
    order = np.lexsort((some, -bits_some))[:top]
    return some[order], bits_some[order]


def seconds(atlas: "Atlas") -> float:
    """Return about how long it takes to read every posting."""
    return float(atlas.counts.sum()) / PER_SECOND
