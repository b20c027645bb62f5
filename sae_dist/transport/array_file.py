"""The array [N, D] of an .npy or .safetensors file, mapped and checked without torch."""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae_dist.core.errors import ConfigError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The floating-point dtypes of safetensors, and what numpy and torch call them."""
SAMPLE_ROWS = 4096


@dataclass(frozen=True)
class MappedArray:
    """An array of a file, memory-mapped; a change of it does not reach the file.

    Attributes:
        dtype: as torch calls it.
        content: the array, or its bytes [n] in a row if they come from a safetensors file.
    """

    dtype: str
    shape: tuple[int, ...]
    content: np.ndarray

    def numbers_ND(self) -> np.ndarray:
        """Return the array as numpy can hold it: bfloat16 as the integers of its bits."""
        if self.content.dtype != np.uint8:
            return self.content
        return self.content.view("uint16" if self.dtype == "bfloat16" else self.dtype).reshape(self.shape)


def map_array(path: str, key: str | None) -> MappedArray:
    """Map the array [N, D] at `path` without reading it, and check a sample of its rows.

    Args:
        key: which tensor of a safetensors file; None: the only one.

    Raises:
        ConfigError: no such file, unknown suffix, not a floating [N, D] array, NaN or inf in the sample.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"activations.path={path} does not exist; give an .npy or .safetensors file")
    if file.suffix == ".npy":
        found = _map_npy(file)
    elif file.suffix == ".safetensors":
        found = _map_safetensors(file, key)
    else:
        raise ConfigError(f"activations.path={path} must end in .npy or .safetensors")
    if len(found.shape) != 2 or found.dtype not in DTYPES.values():
        raise ConfigError(
            f"activations.path={path} holds {found.dtype} of shape {list(found.shape)}; "
            "it must be a floating-point array [N, D]"
        )
    stride = max(1, found.shape[0] // SAMPLE_ROWS)
    bad = np.flatnonzero(~_finite_rows(found.numbers_ND()[::stride]))
    if len(bad):
        raise ConfigError(f"activations.path={path} has NaN or inf in row {int(bad[0]) * stride}; remove it")
    return found


def _finite_rows(sample_ND: np.ndarray) -> np.ndarray:
    """Return which rows hold numbers that float32 can hold, [N]."""
    if sample_ND.dtype == np.uint16:
        exponent = np.uint16(0x7F80)
        return np.all((sample_ND & exponent) != exponent, axis=1)
    with np.errstate(over="ignore"):
        return np.all(np.isfinite(sample_ND.astype(np.float32)), axis=1)


def _map_npy(file: Path) -> MappedArray:
    try:
        array = np.load(file, mmap_mode="c", allow_pickle=False)
        if not array.dtype.isnative:
            raise ValueError("its byte order is not this machine's")
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ConfigError(f"activations.path={file} is not a readable .npy array: {error}") from None
    return MappedArray(str(array.dtype), array.shape, array)


def _map_safetensors(file: Path, key: str | None) -> MappedArray:
    """Map one tensor of a safetensors file (the library's own reader copies the tensor into memory)."""
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
    if entry["dtype"] not in DTYPES:
        raise ConfigError(f"activations.key={key} holds {entry['dtype']}; it must be floating point")
    if 0 in entry["shape"]:
        raise ConfigError(
            f"activations.key={key} of {file} has shape {entry['shape']}; it must be [N, D] with N > 0"
        )
    first, last = entry["data_offsets"]
    if 8 + size + last > len(mapped):
        raise ConfigError(f"activations.path={file} is truncated; write it again")
    content = np.frombuffer(mapped, np.uint8, count=last - first, offset=8 + size + first)
    return MappedArray(DTYPES[entry["dtype"]], tuple(entry["shape"]), content)
