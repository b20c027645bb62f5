"""Arrays in numpy's .npy format, whose header is checked against the bytes behind it before they are read.

numpy's own reader allocates what a header asks for first, and evaluates it as Python.
"""

import ast
import io
import re
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}
"""Version of the format -> bytes of the header's length. Version 3 is for fields, which no array here has."""
MOST_HEADER_BYTES = 10_000
PLAIN = re.compile(r"[\w\s{}()\[\]'\",:<>|=.-]*", re.ASCII)
MOST_BRACKETS = 16
KEYS = {"descr", "fortran_order", "shape"}


@dataclass(frozen=True)
class NpyHeader:
    """The header of an array; `offset` is where its numbers begin, and `by_columns` their order."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_columns: bool
    offset: int


def npy_header(file: BinaryIO, size: int) -> NpyHeader:
    """Read the header at the beginning of a file of `size` bytes.

    Raises:
        ValueError: it is none, is of an array of objects, or asks for more bytes than the file has.
    """
    begin = file.read(8)
    version = (begin[6], begin[7]) if len(begin) == 8 and begin.startswith(MAGIC) else None
    if version not in LENGTH_BYTES:
        raise ValueError("it does not begin as an array of numpy does")
    length = int.from_bytes(file.read(LENGTH_BYTES[version]), "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes")
    text = file.read(length).decode("latin1")
    offset = 8 + LENGTH_BYTES[version] + length
    found = _literal(text)
    dtype, shape = np.dtype(found["descr"]), found["shape"]
    if not isinstance(shape, tuple) or not all(type(each) is int and each >= 0 for each in shape):
        raise ValueError(f"its shape is {str(shape)[:60]}")
    if dtype.hasobject or dtype.names or dtype.subdtype:
        raise ValueError(f"it holds {'Python objects' if dtype.hasobject else 'records'}, not numbers")
    if type(found["fortran_order"]) is not bool:
        raise ValueError("its fortran_order is neither True nor False")
    needed, follow = prod(shape) * dtype.itemsize, max(size - offset, 0)
    if needed > follow:
        raise ValueError(f"it needs {needed} bytes for shape {list(shape)}, and {follow} follow")
    return NpyHeader(dtype, shape, found["fortran_order"], offset)


def _literal(text: str) -> dict[str, Any]:
    """Return the dict that a header is."""
    if not PLAIN.fullmatch(text) or sum(map(text.count, "({")) > MOST_BRACKETS:
        raise ValueError("its header is damaged")
    try:
        found = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError("its header is damaged") from None
    if not isinstance(found, dict) or set(found) != KEYS:
        raise ValueError("its header is damaged")
    return found


def npy_array(data: bytes) -> np.ndarray:
    """Return the array that the bytes of an .npy file hold, read-only.

    Raises:
        ValueError: see `npy_header`.
    """
    header = npy_header(io.BytesIO(data), len(data))
    flat = np.frombuffer(data, header.dtype, prod(header.shape), header.offset)
    return flat.reshape(header.shape, order="F" if header.by_columns else "C")
