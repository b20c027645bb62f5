"""The format of a file of rows [N, D]: .npy, or .safetensors, in which a scale may lie beside the rows.

A safetensors file may hold `rows` and `scale`, or a scale named as the rows with `_scale` or `.scale`. Rows
are multiplied by it: one number for all, one for each row [N] or [N, 1], or one for each column [1, D], or
[D] where that is not N. So int8 activations can be read.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.npy import npy_header
from sae_dist.core.parsing import check_header, parse_json, reading

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}
"""The dtypes of safetensors that can be read, and what numpy and torch call them."""
ROWS, SCALE = "rows", "scale"


@dataclass(frozen=True)
class Stored:
    """An array in a file: its dtype as torch calls it, its shape, where it begins, and whether by columns."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    by_columns: bool = False

    def map(self, path: Path) -> np.ndarray:
        """Map the array, read-only; bfloat16 as the integers of its bits.

        Raises:
            OSError, ValueError: the file is gone or shorter.
        """
        kind = "uint16" if self.dtype == "bfloat16" else self.dtype
        order: Any = "F" if self.by_columns else "C"
        return np.memmap(path, kind, "r", self.offset, self.shape, order)


@dataclass(frozen=True)
class ArrayFile:
    """A file of rows [N, D], which is mapped for as long as a part of it is read.

    Attributes:
        size: bytes of the file when it was found.
        scale: what rows are multiplied by; None: nothing.
    """

    path: Path
    size: int
    rows: Stored
    scale: Stored | None = None

    @property
    def dtype(self) -> str:
        """The dtype of the rows that are read, as torch calls it."""
        return self.rows.dtype if self.scale is None else "float32"

    def read(self, first: int, last: int, step: int = 1) -> np.ndarray:
        """Return a copy of some rows; bfloat16 as the integers of its bits.

        Raises:
            DataError: the file is gone, or is not as long as it was.
        """
        try:
            if (size := os.stat(self.path).st_size) != self.size:
                raise DataError(
                    f"{self.path} was changed since the run began: it has {size} bytes, and had {self.size}; "
                    "put it back as it was, and go on"
                )
            found = np.array(self.rows.map(self.path)[first:last:step])
            if self.scale is None:
                return found
            return as_float(found, self.rows.dtype) * self._scales(first, last, step)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error

    def _scales(self, first: int, last: int, step: int) -> np.ndarray:
        """Return the scales of some rows, [rows, 1], [1, D] or [1, 1], float32."""
        assert self.scale is not None
        found = as_float(np.array(self.scale.map(self.path)), self.scale.dtype)
        if found.size == 1:
            return found.reshape(1, 1)
        if found.shape[0] == self.rows.shape[0]:
            return found.reshape(-1, 1)[first:last:step]
        return found.reshape(1, -1)


def as_float(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array as float32; of bfloat16 the integers of its bits are given."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def open_file(file: Path, key: str | None) -> ArrayFile:
    """Read where a file has its rows and their scale.

    Args:
        key: which tensor of a safetensors file; None: the only one, or `rows`.

    Raises:
        ConfigError: it cannot be read, or what it holds is not floating-point.
    """
    return _open_npy(file) if file.suffix == ".npy" else _open_safetensors(file, key)


def _open_npy(file: Path) -> ArrayFile:
    size = file.stat().st_size
    with reading(f"activations.path={file}", "is not a readable .npy array: {reason}"):
        with open(file, "rb") as handle:
            header = npy_header(handle, size)
        if not header.dtype.isnative:
            raise ValueError("its byte order is not this machine's")
    if 0 in header.shape:
        return ArrayFile(file, size, Stored("float32", header.shape, 0))
    dtype = str(header.dtype)
    if dtype == "int8":
        raise ConfigError(
            f"activations.path={file} holds int8 without a scale; store both in a .safetensors file, as "
            "rows and scale"
        )
    if dtype not in DTYPES.values():
        raise ConfigError(
            f"activations.path={file} holds {dtype} of shape {list(header.shape)}; it must be a "
            "floating-point array [N, D]"
        )
    return ArrayFile(file, size, Stored(dtype, header.shape, header.offset, header.by_columns))


def _open_safetensors(file: Path, key: str | None) -> ArrayFile:
    """Find a tensor of a safetensors file, and its scale.

    The library's own reader copies them; it checks the header, with every offset and shape in it.
    """
    how = "is not a readable .safetensors file ({reason}); write it again"
    with reading(f"activations.path={file}", how):
        check_header(file)
        with safe_open(file, "np"):
            pass
        with open(file, "rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = parse_json(handle.read(size))
        header.pop("__metadata__", None)
    key = key or _only_key(header)
    if key is None or key not in header:
        raise ConfigError(f"activations.key={key} is not in {file}; it holds {', '.join(sorted(header)[:8])}")
    for name in _scale_names(key, header):
        if name in header:
            scale = _stored(file, header, name, 8 + size)
            break
    else:
        scale = None
    rows = _stored(file, header, key, 8 + size)
    if rows.dtype == "int8" and scale is None:
        raise ConfigError(
            f"activations.key={key} of {file} holds int8 without a scale; add a tensor {SCALE}, one number "
            "or one for each row [N, 1] or column [1, D]"
        )
    if scale is not None and not _fits(scale.shape, rows.shape):
        raise ConfigError(
            f"activations.path={file}: the scale has shape {list(scale.shape)}, and the rows "
            f"{list(rows.shape)}; give one number, or one for each row [N, 1] or column [1, D]"
        )
    return ArrayFile(file, file.stat().st_size, rows, scale)


def _only_key(header: dict[str, Any]) -> str | None:
    if ROWS in header:
        return ROWS
    tensors = [name for name in header if name not in (SCALE,) and not name.endswith(("_scale", ".scale"))]
    found = list(header) if len(header) == 1 else tensors
    return found[0] if len(found) == 1 else None


def _scale_names(key: str, header: dict[str, Any]) -> list[str]:
    """List what the scale of a tensor may be called; `scale` only where it can be of nothing else."""
    alone = key == ROWS or header[key].get("dtype") == "I8"
    return [f"{key}_scale", f"{key}.scale", *([SCALE] if alone and key != SCALE else [])]


def _fits(scale: tuple[int, ...], rows: tuple[int, ...]) -> bool:
    if int(np.prod(scale)) == 1:
        return True
    if len(rows) != 2:
        return False
    return scale in ((rows[0],), (rows[0], 1), (rows[1],), (1, rows[1]))


def _stored(file: Path, header: dict[str, Any], key: str, begin: int) -> Stored:
    entry = header[key]
    if entry["dtype"] not in DTYPES:
        raise ConfigError(
            f"activations.key={key} of {file} holds {entry['dtype']}; it must be floating point, or int8 "
            "with a scale"
        )
    first, _ = entry["data_offsets"]
    return Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]), begin + first)
