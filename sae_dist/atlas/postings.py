"""The inverted index of an atlas, by an external sort: windows of codes, each sorted by latent, then merged.

Letters: P codes.
"""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from sae_dist.atlas.schema import POSTINGS, POSTINGS_SCHEMA, part_file
from sae_dist.atlas.tables import write_table
from sae_dist.core.files import replacing

CODE = np.dtype([("latent", "<u4"), ("row", "<u4"), ("code", "<f4")])
"""A code in a window: its row is the number of the activation, in the order of chunks."""
NO_PLACE = 2**32 - 1


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
    folder: Path, part: int, latents: range, windows: Sequence[Path], at_of_row: np.ndarray
) -> int:
    """Write the postings of a part's latents from all windows; return how many there are.

    Args:
        folder: of the atlas.
        at_of_row: the place of each row; NO_PLACE: the row stands for none, and its codes do not count.
    """
    pieces = [_of_latents(read_window(path), latents) for path in windows]
    codes = np.concatenate([np.empty(0, CODE), *pieces])
    at_P = at_of_row[codes["row"]].astype(np.uint32)
    there_P = at_P != NO_PLACE
    codes, at_P = codes[there_P], at_P[there_P]
    order_P = np.lexsort((at_P, codes["latent"]))
    table = pa.table(
        [codes["latent"][order_P], at_P[order_P], codes["code"][order_P]], schema=POSTINGS_SCHEMA
    )
    write_table(part_file(folder, POSTINGS, part), table)
    return len(table)


def _of_latents(window: np.ndarray, latents: range) -> np.ndarray:
    latent_P = window["latent"]
    first, end = (bisect_left(latent_P, each) for each in (latents.start, latents.stop))
    return window[first:end]
