"""Activations from a file: a memory-mapped .npy or .safetensors array [N, D]."""

import json
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.types import ActivationChunk, Position

HELD_OUT_ONE_IN = 8
SAMPLE_ROWS = 4096


def open_array(path: str, key: str | None) -> Tensor:
    """Map the array [N, D] at `path` without reading it, and check a sample of its rows.

    Raises:
        ConfigError: no such file, unknown suffix, not a floating [N, D] array, NaN or inf in the sample.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"activations.path={path} does not exist; give an .npy or .safetensors file")
    if file.suffix == ".npy":
        try:
            array = torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise ConfigError(f"activations.path={path} is not a readable .npy array: {error}") from None
    elif file.suffix == ".safetensors":
        array = _open_safetensors(file, key)
    else:
        raise ConfigError(f"activations.path={path} must end in .npy or .safetensors")
    if array.ndim != 2 or not array.is_floating_point():
        raise ConfigError(
            f"activations.path={path} holds {array.dtype} of shape {list(array.shape)}; "
            "it must be a floating-point array [N, D]"
        )
    stride = max(1, len(array) // SAMPLE_ROWS)
    bad = (~torch.isfinite(array[::stride].float()).all(1)).nonzero()
    if len(bad):
        raise ConfigError(f"activations.path={path} has NaN or inf in row {int(bad[0]) * stride}; remove it")
    return array


def _open_safetensors(file: Path, key: str | None) -> Tensor:
    """Map one tensor of a safetensors file (the library's own reader copies the tensor into memory)."""
    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    try:
        with open(file, "rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    except (ValueError, OSError, OverflowError, MemoryError):
        raise ConfigError(f"activations.path={file} is not a readable .safetensors file") from None
    header.pop("__metadata__", None)
    if key is None and len(header) == 1:
        key = next(iter(header))
    if key not in header:
        raise ConfigError(f"activations.key={key} is not in {file}; it holds {', '.join(sorted(header)[:8])}")
    entry = header[key]
    if entry["dtype"] not in dtypes:
        raise ConfigError(f"activations.key={key} holds {entry['dtype']}; it must be floating point")
    if 0 in entry["shape"]:
        raise ConfigError(
            f"activations.key={key} of {file} has shape {entry['shape']}; it must be [N, D] with N > 0"
        )
    first, last = entry["data_offsets"]
    if 8 + size + last > len(mapped):
        raise ConfigError(f"activations.path={file} is truncated; write it again")
    dtype = dtypes[entry["dtype"]]
    flat = torch.frombuffer(mapped, dtype=torch.uint8, offset=8 + size + first, count=last - first)
    return flat.view(dtype).view(entry["shape"])


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
