"""The inverted index of an atlas, by an external sort: windows of codes, each sorted by latent, then merged.

Letters: P codes; N windows; K edges.
"""

import shutil
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from sae_dist.atlas.schema import POSTINGS, POSTINGS_SCHEMA, ROW_GROUPS, WORK, part_file
from sae_dist.atlas.tables import TableWriter
from sae_dist.core.files import replacing

CODE = np.dtype([("latent", "<u4"), ("row", "<u4"), ("code", "<f4")])
"""A code in a window: its row is the number of the activation, in the order of chunks."""
NO_PLACE = 2**32 - 1
SORTED_AT_ONCE = 1 << 22
EDGES = 4097
"""Places at which the codes of one latent may be cut into pieces."""
Postings = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Latents, places and codes."""


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
        at_once: codes that are in memory, 48 bytes each, or the codes of one latent in a window.
    """
    mapped, count = [read_window(path) for path in windows], 0
    file = part_file(folder, POSTINGS, part)
    with TableWriter(file, POSTINGS_SCHEMA, ROW_GROUPS[POSTINGS]) as writer:
        for few, codes in _blocks(mapped, latents, at_once):
            split = codes > at_once and len(few) == 1
            runs = folder / WORK / "runs" / f"part-{part:05d}"
            found = _of_one(mapped, few, at_of_row, at_once, runs) if split else [_of(mapped, few, at_of_row)]
            for latent_P, at_P, code_P in found:
                writer.write(pa.table([latent_P, at_P, code_P], schema=POSTINGS_SCHEMA))
                count += len(at_P)
    return count


def _of(windows: Sequence[np.ndarray], latents: range, at_of_row: np.ndarray) -> Postings:
    """Return the codes of some latents in all windows, sorted by latent and place."""
    codes = np.concatenate([np.empty(0, CODE), *(_of_latents(each, latents) for each in windows)])
    at_P = at_of_row[codes["row"]]
    there_P = at_P != NO_PLACE
    codes, at_P = codes[there_P], at_P[there_P]
    order_P = np.lexsort((at_P, codes["latent"]))
    return codes["latent"][order_P], at_P[order_P], codes["code"][order_P]


def _of_one(
    windows: Sequence[np.ndarray], latents: range, at_of_row: np.ndarray, at_once: int, folder: Path
) -> Iterator[Postings]:
    """Yield the codes of one latent sorted by place, in pieces; each window's are sorted on disk before."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for number, window in enumerate(windows):
        _, at_P, code_P = _of([window], latents, at_of_row)
        paths = [folder / f"{name}-{number:07d}.npy" for name in ("at", "code")]
        for path, column in zip(paths, (at_P, code_P), strict=True):
            np.save(path, column)
        runs.append([np.load(path, mmap_mode="r", allow_pickle=False) for path in paths])
    last = max((int(at_P[-1]) for at_P, _ in runs if len(at_P)), default=0)
    edges = np.linspace(0, last + 1, EDGES).astype(np.int64)
    cut_NK = np.array([np.searchsorted(at_P, edges) for at_P, _ in runs])
    before_K = cut_NK.sum(0)
    start = 0
    while start + 1 < EDGES:
        stop = int(np.searchsorted(before_K, before_K[start] + at_once, side="right")) - 1
        stop = max(stop, start + 1)
        slices = [slice(*each) for each in cut_NK[:, [start, stop]]]
        at_P, code_P = (
            np.concatenate([run[column][each] for run, each in zip(runs, slices, strict=True)])
            for column in (0, 1)
        )
        order_P = np.argsort(at_P)
        yield np.full(len(at_P), latents.start, np.uint32), at_P[order_P], code_P[order_P]
        start = stop
    shutil.rmtree(folder)


def _blocks(windows: Sequence[np.ndarray], latents: range, at_once: int) -> Iterator[tuple[range, int]]:
    """Yield the latents in ranges with few enough codes each to be sorted in memory, and how many."""
    codes = sum(len(_of_latents(window, latents)) for window in windows)
    if codes <= at_once or len(latents) == 1:
        yield latents, codes
        return
    middle = len(latents) // 2
    yield from _blocks(windows, latents[:middle], at_once)
    yield from _blocks(windows, latents[middle:], at_once)


def _of_latents(window: np.ndarray, latents: range) -> np.ndarray:
    latent_P = window["latent"]
    first, end = (bisect_left(latent_P, each) for each in (latents.start, latents.stop))
    return window[first:end]
