"""The postings of a part, a few latents at a time, so that memory does not grow with the text.

Letters: f latents of a part; P codes, sorted by latent and place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae_dist.atlas.schema import POSTINGS, part_file

AT_ONCE = 1 << 22
"""So many codes are described in memory, at most 160 bytes each."""
RUN = 1 << 12
"""Codes of a latent that are summed first: then sums do not depend on how many are in memory."""


@dataclass(frozen=True)
class Block:
    """Some latents of a part with their postings.

    Attributes:
        latents: one alone if its codes do not fit into memory at once.
        sizes: codes of each piece; pieces of one latent have whole runs of RUN codes, but for the last.
    """

    latents: range
    sizes: list[int]
    _read: Callable[[int, int], pa.Table]
    _first: int

    @property
    def is_split(self) -> bool:
        """The answer to: are there several pieces?"""
        return len(self.sizes) > 1

    def pieces(self) -> Iterator[pa.Table]:
        """Read the postings piece by piece; it can be done again."""
        first = self._first
        for size in self.sizes:
            yield self._read(first, first + size)
            first += size


def blocks(
    folder: Path, part: int, latents: range, at_once: int = AT_ONCE, columns: Sequence[str] | None = None
) -> Iterator[Block]:
    """Yield a part's latents with their postings, which are there until the next is asked for.

    Args:
        folder: of the atlas.
        latents: of the part.
        at_once: codes in a piece, at most, but for RUN that one always has.
        columns: that are read; None: all.
    """
    with pq.ParquetFile(part_file(folder, POSTINGS, part)) as file:
        begin_f = np.concatenate([[0], np.cumsum(counts(file, latents))])
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        group_begin = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

        def read(first: int, end: int) -> pa.Table:
            group = int(np.searchsorted(group_begin, first, side="right")) - 1
            last = int(np.searchsorted(group_begin, end, side="left"))
            wanted = list(range(group, last)) if end > first else []
            table = file.read_row_groups(wanted, columns=columns)
            return table.slice(first - int(group_begin[group]), end - first)

        longest = max(RUN, at_once // RUN * RUN)
        start = 0
        while start < len(latents):
            stop = int(np.searchsorted(begin_f, begin_f[start] + at_once, side="right")) - 1
            stop = max(stop, start + 1)
            first, left = int(begin_f[start]), int(begin_f[stop] - begin_f[start])
            pieces = [left] if stop > start + 1 or left <= longest else _split(left, longest)
            yield Block(latents[start:stop], pieces, read, first)
            start = stop


def counts(file: pq.ParquetFile, latents: range) -> np.ndarray:
    """Count the codes of each latent of a part [f]."""
    count_f = np.zeros(len(latents), np.int64)
    for batch in file.iter_batches(1 << 20, columns=["latent"]):
        latent_P = batch.column(0).to_numpy()
        if len(latent_P):
            first = int(latent_P[0])
            found = np.bincount(latent_P - np.uint32(first))
            place = first - latents.start
            count_f[place : place + len(found)] += found
    return count_f


def _split(length: int, longest: int) -> list[int]:
    return [min(longest, length - first) for first in range(0, length, longest)]
