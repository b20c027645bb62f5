"""The postings of a part, a few latents at a time, so that memory does not grow with the text.

Letters: f latents of a part; P codes, sorted by latent and place.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae_dist.atlas.schema import POSTINGS, part_file

AT_ONCE = 1 << 22
"""So many codes are described in memory, about 100 bytes each."""


def blocks(
    folder: Path, part: int, latents: range, at_once: int = AT_ONCE, columns: Sequence[str] | None = None
) -> Iterator[tuple[range, pa.Table]]:
    """Yield a part's postings in pieces of whole latents, each with its latents.

    Args:
        folder: of the atlas.
        latents: of the part.
        at_once: codes in a piece, at most, unless one latent has more.
        columns: that are read; None: all.
    """
    with pq.ParquetFile(part_file(folder, POSTINGS, part)) as file:
        begin_f = np.concatenate([[0], np.cumsum(counts(file, latents))])
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        group_begin = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        start = 0
        while start < len(latents):
            stop = int(np.searchsorted(begin_f, begin_f[start] + at_once, side="right")) - 1
            stop = max(stop, start + 1)
            first, end = int(begin_f[start]), int(begin_f[stop])
            group = int(np.searchsorted(group_begin, first, side="right")) - 1
            last = int(np.searchsorted(group_begin, end, side="left"))
            wanted = list(range(group, last)) if end > first else []
            table = file.read_row_groups(wanted, columns=columns)
            yield latents[start:stop], table.slice(first - int(group_begin[group]), end - first)
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
