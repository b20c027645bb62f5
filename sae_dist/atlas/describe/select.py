"""Selections within latents, of codes that are sorted by latent: no loop over latents or codes.

Letters: P codes, sorted by latent and place; Q groups of neighbours among them; S selected ones.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Selected:
    """The selected rows of a table, sorted by latent and rank.

    Attributes:
        latent_S: the latent of each, counted from the part's first.
        rank_S: 0 for the first of a latent.
        which_S: numbers of rows.
    """

    latent_S: np.ndarray
    rank_S: np.ndarray
    which_S: np.ndarray


def groups(*columns_P: np.ndarray) -> np.ndarray:
    """Return where runs of rows begin that are equal in every column [Q]."""
    length = len(columns_P[0])
    if length == 0:
        return np.zeros(0, np.int64)
    changes = np.zeros(length - 1, bool)
    for each in columns_P:
        changes |= each[1:] != each[:-1]
    return np.concatenate([[0], np.flatnonzero(changes) + 1])


def sizes(start_Q: np.ndarray, length: int) -> np.ndarray:
    """Return the number of rows in each run."""
    return np.diff(start_Q, append=length)


def first_of_each(latent_Q: np.ndarray, key_Q: np.ndarray, num: int) -> Selected:
    """Choose the `num` rows of each latent with the least keys.

    Args:
        latent_Q: in any order.
        key_Q: uint64, no two of a latent's equal.
    """
    order_Q = np.argsort(key_Q)
    order_Q = order_Q[np.argsort(_narrow(latent_Q[order_Q]), kind="stable")]
    latent_Q = latent_Q[order_Q]
    start_Q = groups(latent_Q)
    rank_Q = np.arange(len(latent_Q)) - np.repeat(start_Q, sizes(start_Q, len(latent_Q)))
    chosen_Q = rank_Q < num
    return Selected(latent_Q[chosen_Q], rank_Q[chosen_Q], order_Q[chosen_Q])


def best_of_documents(latent_P: np.ndarray, document_P: np.ndarray, key_P: np.ndarray, num: int) -> Selected:
    """Choose the `num` codes with the least keys of each latent, one a document.

    Args:
        latent_P: counted from the part's first; a latent's codes of one document are neighbours.
        key_P: uint64, no two of a latent's equal.
    """
    start_Q = groups(latent_P, document_P)
    if len(start_Q) == 0:
        nothing = np.zeros(0, np.int64)
        return Selected(nothing, nothing, nothing)
    least_Q = np.minimum.reduceat(key_P, start_Q)
    which_Q = np.flatnonzero(key_P == np.repeat(least_Q, sizes(start_Q, len(key_P))))
    found = first_of_each(latent_P[start_Q], least_Q, num)
    return Selected(found.latent_S, found.rank_S, which_Q[found.which_S])


def _narrow(latent_Q: np.ndarray) -> np.ndarray:
    """Return small numbers in 16 bits if they fit: numpy sorts those by radix."""
    return latent_Q.astype(np.uint16) if latent_Q.max(initial=0) < 1 << 16 else latent_Q
