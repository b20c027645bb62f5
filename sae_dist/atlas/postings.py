"""The inverted index of an atlas, by an external sort: windows of codes, each sorted by latent, then merged.

Letters: P codes.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from sae_dist.atlas.schema import POSTINGS, POSTINGS_SCHEMA, ROW_GROUPS, part_file
from sae_dist.atlas.tables import TableWriter
from sae_dist.core.files import replacing

CODE = np.dtype([("latent", "<u4"), ("row", "<u4"), ("code", "<f4")])
"""A code in a window: its row is the number of the activation, in the order of chunks."""
NO_PLACE = 2**32 - 1
SORTED_AT_ONCE = 1 << 22


def write_window(path: Path, latent_P: np.ndarray, row_P: np.ndarray, code_P: np.ndarray) -> None:
    """Write the codes of some rows and latents as a window: a .npy of `CODE`, sorted by latent and row."""
    found = np.empty(len(latent_P), CODE)
    order_P = np.lexsort((row_P, latent_P))
    found["latent"], found["row"], found["code"] = latent_P[order_P], row_P[order_P], code_P[order_P]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, synced=True) as temporary, open(temporary, "wb") as file:
        np.save(file, found)


def read_window(path: Path) -> np.ndarray:
    """Return the codes of a window, mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def merge_part(
    folder: Path,
    part: int,
    latents: range,
    windows: Sequence[Path],
    at_of_row: np.ndarray,
    at_once: int = SORTED_AT_ONCE,
) -> int:
    """Write the postings of a part's latents from all windows; return how many there are.

    Args:
        folder: of the atlas.
        at_of_row: the place of each row; NO_PLACE: the row stands for none, and its codes do not count.
        at_once: codes that are in memory, 48 bytes each; those of one latent are together.
    """
    mapped, count = [read_window(path) for path in windows], 0
    file = part_file(folder, POSTINGS, part)
    with TableWriter(file, POSTINGS_SCHEMA, ROW_GROUPS[POSTINGS]) as writer:
        for few in _blocks(mapped, latents, at_once):
            codes = np.concatenate([np.empty(0, CODE), *(_of_latents(each, few) for each in mapped)])
            at_P = at_of_row[codes["row"]]
            there_P = at_P != NO_PLACE
            codes, at_P = codes[there_P], at_P[there_P]
            order_P = np.lexsort((at_P, codes["latent"]))
            columns = [codes["latent"][order_P], at_P[order_P], codes["code"][order_P]]
            writer.write(pa.table(columns, schema=POSTINGS_SCHEMA))
            count += len(order_P)
    return count


def _blocks(windows: Sequence[np.ndarray], latents: range, at_once: int) -> Iterator[range]:
    """Yield the latents in ranges with few enough codes each to be sorted in memory, at least one latent."""
    codes = sum(len(_of_latents(window, latents)) for window in windows)
    if codes <= at_once or len(latents) == 1:
        yield latents
        return
    middle = len(latents) // 2
    yield from _blocks(windows, latents[:middle], at_once)
    yield from _blocks(windows, latents[middle:], at_once)


def _of_latents(window: np.ndarray, latents: range) -> np.ndarray:
    latent_P = window["latent"]
    first, end = (bisect_left(latent_P, each) for each in (latents.start, latents.stop))
    return window[first:end]
