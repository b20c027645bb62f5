"""Activations from a file: a memory-mapped .npy or .safetensors array [N, D]."""

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.types import ActivationChunk, Position
from sae_dist.transport.array_file import map_array

HELD_OUT_ONE_IN = 8


def open_array(path: str, key: str | None) -> Tensor:
    """Map the array [N, D] at `path` without reading it.

    Raises:
        ConfigError: see `transport.array_file.map_array`.
    """
    found = map_array(path, key)
    content = torch.from_numpy(found.content)
    if content.dtype != torch.uint8:
        return content
    return content.view(getattr(torch, found.dtype)).view(found.shape)


class FileChunkSource:
    """Chunks of consecutive rows of an array, dealt out to lanes in an order permuted in every epoch.

    One chunk in eight is held out for evaluation, the same in every run. Rows at the end of the array that do
    not fill a chunk are not read.

    Args:
        lanes, rows: lanes of the run and wanted rows per chunk R; R is reduced if the array has too few rows
            for the lanes.
        held_out: read the held-out chunks instead, once, in file order, through lane 0.
    """

    def __init__(
        self, array: Tensor, *, lanes: int, rows: int, seed: int, held_out: bool, dtype: torch.dtype
    ):
        self.array, self.seed, self.dtype, self.held_out = array, seed, dtype, held_out
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

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane, as `ChunkSource.open`. Held-out chunks end after one pass."""
        index = start["chunk"] if start else 0
        per_epoch = len(self.places) // self.lanes
        while True:
            epoch, turn = divmod(index, per_epoch)
            if self.held_out and epoch:
                return
            order = np.arange(len(self.places))
            if not self.held_out:
                drawn = np.random.Philox(seed=[self.seed, epoch]).random_raw(len(self.places))
                order = np.argsort(drawn, kind="stable")
            for place in self.places[order[turn * self.lanes + lane :: self.lanes][: per_epoch - turn]]:
                yield self._read(lane, index, int(place))
                index += 1

    def _read(self, lane: int, index: int, place: int) -> ActivationChunk:
        first = place * self.rows
        rows = self.array[first : first + self.rows].to(self.dtype)
        bad = (~torch.isfinite(rows).all(1)).nonzero()
        if len(bad):
            raise DataError(f"activations.path has NaN or inf in row {first + int(bad[0])}; remove it")
        ids = torch.arange(first, first + self.rows)
        return ActivationChunk(index * self.lanes + lane, lane, rows, ids, {"chunk": index})
