"""Activations from files: arrays [N, D] in .npy or .safetensors files, one after the other."""

import zlib
from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.types import ActivationChunk, Position
from sae_dist.transport.array_file import find_arrays
from sae_dist.transport.array_formats import ArrayFile

HELD_OUT_ONE_IN = 8


class Arrays:
    """The rows of several files in a row, read when they are asked for: `arrays[first:last]`."""

    def __init__(self, files: list[ArrayFile]):
        self.files = files
        self.ends = np.cumsum([file.rows.shape[0] for file in files])
        self.shape = (int(self.ends[-1]), files[0].rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Return some rows [rows, D] in the files' dtype.

        Raises:
            DataError: a file is gone, or was changed.
        """
        first, last, _ = rows.indices(len(self))
        parts = []
        while first < last:
            number = int(np.searchsorted(self.ends, first, side="right"))
            file, end = self.files[number], int(self.ends[number])
            begin = end - file.rows.shape[0]
            parts.append(_tensor(file.read(first - begin, min(last, end) - begin), file.dtype))
            first = end
        return torch.cat(parts) if parts else torch.zeros(0, self.shape[1])

    def where(self, row: int) -> str:
        """Name a row for a person, with its file if there are several."""
        if len(self.files) == 1:
            return f"row {row}"
        number = int(np.searchsorted(self.ends, row, side="right"))
        file = self.files[number]
        return f"row {row - int(self.ends[number]) + file.rows.shape[0]} of {file.path}"


def open_array(path: str, key: str | None) -> Arrays:
    """Find the rows at `path`, without reading them.

    Raises:
        ConfigError: see `transport.array_file.find_arrays`.
    """
    return Arrays(find_arrays(path, key))


class FileChunkSource:
    """Chunks of consecutive rows of an array, dealt out to lanes in an order permuted in every pass.

    One chunk in eight is held out for evaluation, the same in every run. Rows at the end of the array that do
    not fill a chunk are not read. The passes follow each other without a gap: chunk c of the run, c = index x
    lanes + lane, is chunk c mod P of pass c // P, if P chunks are trained on.

    Args:
        lanes, rows: lanes of the run and wanted rows per chunk R; R is reduced if the array has too few rows
            for the lanes.
        held_out: read the held-out chunks instead, once, in file order, through lane 0.
        max_norm_multiple: rows longer than this multiple of their chunk's median are replaced by others of
            the chunk, in turn; None: all rows are kept.
    """

    def __init__(
        self,
        array: Tensor | Arrays,
        *,
        lanes: int,
        rows: int,
        seed: int,
        held_out: bool,
        dtype: torch.dtype,
        max_norm_multiple: float | None = None,
    ):
        self.array, self.seed, self.dtype, self.held_out = array, seed, dtype, held_out
        self.max_norm_multiple = max_norm_multiple
        self.lanes = 1 if held_out else lanes
        self.width = array.shape[1]
        self.rows = min(rows, len(array) // (lanes * 2))
        if self.rows == 0:
            raise ConfigError(
                f"activations.path has {len(array)} rows, too few for shuffle.lanes={lanes}; "
                f"give at least {lanes * 2} rows or fewer lanes"
            )
        numbers = np.arange(len(array) // self.rows)
        chosen = np.array([zlib.crc32(int(n).to_bytes(8, "little")) % HELD_OUT_ONE_IN == 0 for n in numbers])
        chosen[0] |= not chosen.any()
        self.places = numbers[chosen if held_out else ~chosen]
        self.orders: dict[int, np.ndarray] = {}

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane, as `ChunkSource.open`. Held-out chunks end after one pass."""
        for index in count(start["chunk"] if start else 0):
            epoch, turn = divmod(index * self.lanes + lane, len(self.places))
            if self.held_out and epoch:
                return
            yield self._read(lane, index, int(self.places[self._order(epoch)[turn]]))

    def passes(self, rows: int) -> float:
        """Return how often a run of so many rows reads the rows that are not held out."""
        return rows / (len(self.places) * self.rows)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of a pass; lanes are in two passes at most at a time."""
        if self.held_out:
            return np.arange(len(self.places))
        if epoch not in self.orders:
            drawn = np.random.Philox(seed=[self.seed, epoch]).random_raw(len(self.places))
            self.orders = {at: order for at, order in self.orders.items() if at >= epoch - 2}
            self.orders[epoch] = np.argsort(drawn, kind="stable")
        return self.orders[epoch]

    def _read(self, lane: int, index: int, place: int) -> ActivationChunk:
        first = place * self.rows
        rows = self.array[first : first + self.rows].to(self.dtype)
        bad = (~torch.isfinite(rows).all(1)).nonzero()
        if len(bad):
            row = first + int(bad[0])
            where = self.array.where(row) if isinstance(self.array, Arrays) else f"row {row}"
            raise DataError(f"activations.path has NaN or inf in {where}; remove it")
        ids = torch.arange(first, first + self.rows)
        number, start = index * self.lanes + lane, {"chunk": index}
        ordinary = self._ordinary(rows)
        missing = self.rows - len(ordinary)
        if missing:
            chosen = torch.cat([ordinary, ordinary[torch.arange(missing) % len(ordinary)]])
            rows, ids = rows[chosen], ids[chosen]
        return ActivationChunk(number, lane, rows, ids, start, excluded=missing, repeated=missing)

    def _ordinary(self, rows_RD: Tensor) -> Tensor:
        """Return the numbers of the rows whose norm is no outlier. Most may be zeros: then none is."""
        if self.max_norm_multiple is None:
            return torch.arange(len(rows_RD))
        wide = torch.promote_types(rows_RD.dtype, torch.float32)
        norm_R = torch.linalg.vector_norm(rows_RD, dim=1, dtype=wide)
        most = self.max_norm_multiple * norm_R.median()
        return torch.arange(len(rows_RD)) if most == 0 else torch.nonzero(norm_R <= most).squeeze(1)


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    """Return a copied array as a tensor; of bfloat16 the integers of its bits are given."""
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
