"""The text of an atlas as its description reads it: columns that are mapped from disk, and counts of tokens.

Letters: T places; V tokens of the vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sae_dist.atlas.schema import KEPT, TOKENS, WORK
from sae_dist.core.files import replacing

NO_TOKEN = 2**32 - 1
"""Stands for the token after the last one of a segment."""
BATCH = 1 << 16
"""Tokens read at a time."""
COLUMNS = ("token", "follower", "document", "kept")


@dataclass(frozen=True)
class Text:
    """The tokens of an atlas by place.

    Attributes:
        token_T: their ids.
        follower_T: the id of the token after each, in the same segment; NO_TOKEN: it is the last.
        document_T: the number of its document.
        kept_T: whether it has an activation that counts.
    """

    token_T: np.ndarray
    follower_T: np.ndarray
    document_T: np.ndarray
    kept_T: np.ndarray

    @staticmethod
    def open(folder: Path) -> "Text":
        """Map the columns of an atlas's text, after writing them to its work folder if they are not there.

        Memory does not grow with the text.
        """
        work = folder / WORK / "text"
        if not all(_file(work, name).is_file() for name in COLUMNS):
            work.mkdir(parents=True, exist_ok=True)
            _write(folder / TOKENS, work)
        columns = [np.load(_file(work, name), mmap_mode="r", allow_pickle=False) for name in COLUMNS]
        return Text(*columns)

    @cached_property
    def count_V(self) -> np.ndarray:
        """The number of kept places of each token."""
        return _counts(self.token_T, self.kept_T)

    @cached_property
    def followed_V(self) -> np.ndarray:
        """The number of kept places that each token follows."""
        return _counts(self.follower_T, self.kept_T)

    @cached_property
    def kept(self) -> int:
        """The number of kept places."""
        return int(self.count_V.sum())


def _file(work: Path, name: str) -> Path:
    return work / f"{name}.npy"


def _write(tokens: Path, work: Path) -> None:
    """Write the columns, a row group at a time."""
    with pq.ParquetFile(tokens) as file:
        length = file.metadata.num_rows
        kinds = (np.uint32, np.uint32, np.uint32, np.bool_)
        for name, kind in zip(COLUMNS, kinds, strict=True):
            with replacing(_file(work, name)) as temporary, open(temporary, "wb") as out:
                np.lib.format.write_array_header_1_0(
                    out,
                    {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (length,)},
                )
                for column in _pieces(file, name):
                    out.write(column.astype(kind).tobytes())


def _pieces(file: pq.ParquetFile, name: str):
    if name == "follower":
        yield from _followers(file)
        return
    for batch in file.iter_batches(BATCH, columns=["state" if name == "kept" else name]):
        column = batch.column(0).to_numpy()
        yield column == KEPT if name == "kept" else column


def _followers(file: pq.ParquetFile):
    """Yield the followers of all tokens but the last of each batch, which the next batch tells."""
    waiting = False
    for batch in file.iter_batches(BATCH, columns=["token", "position"]):
        token_T, position_T = (column.to_numpy() for column in batch.columns)
        next_T = np.where(position_T == 0, NO_TOKEN, token_T)
        yield next_T if waiting else next_T[1:]
        waiting = True
    if waiting:
        yield np.array([NO_TOKEN])


def _counts(token_T: np.ndarray, kept_T: np.ndarray, step: int = 1 << 22) -> np.ndarray:
    """Count the ids at kept places, those that are NO_TOKEN left out."""
    count_V = np.zeros(0, np.int64)
    for first in range(0, len(token_T), step):
        there = slice(first, first + step)
        id_T = token_T[there][kept_T[there]]
        found_V = np.bincount(id_T[id_T != NO_TOKEN])
        if len(found_V) > len(count_V):
            count_V, found_V = found_V, count_V
        count_V[: len(found_V)] += found_V
    return count_V
