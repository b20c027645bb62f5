"""Files of tensors that are written in place, a slice at a time, so that no tensor is in memory as a whole.

Slices are written at an offset. A mapped file would not do: its pages count as memory of the process.
"""

import errno
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sae_dist.core.errors import SaeDistError
from sae_dist.core.files import remedy
from sae_dist.core.sums import listing
from sae_dist.core.text import first_line

Shapes = dict[str, tuple[int, ...]]
ALIGNED = 8
STORAGES = "data"
"""The folder of the tensors in an archive that torch.save wrote."""
PIECE_BYTES = 1 << 20
# Sizes in zip archives (PKWARE's APPNOTE 4.3) of an entry's own header and of its record in the directory, up
# to its name, and the offsets in them of the lengths of name, extra field and comment.
ZIP_HEADER, ZIP_HEADER_LENGTHS = 30, (26, 28)
ZIP_RECORD, ZIP_RECORD_LENGTHS, ZIP_RECORD_CRC = 46, (28, 30, 32), 16
ZIP_DESCRIPTOR = b"PK\x07\x08"
"""The mark before an entry's checksum and size, where they follow its bytes."""


@dataclass(frozen=True)
class TensorSpan:
    """The offset, shape and dtype of a tensor's bytes in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class SlicedFile:
    """A file whose tensors, of known shapes, are written by slices.

    It has a temporary name until `publish`; leaving the `with` block without that removes it.
    """

    def __init__(self, path: Path, places: dict[str, TensorSpan]):
        """Take a file that exists and has its full length.

        Args:
            places: the tensors of the file at `path`.
        """
        self._path, self._places = path, places

    def __enter__(self) -> "SlicedFile":
        self._file = os.open(self._path, os.O_WRONLY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def put(self, name: str, part: Tensor, first: int = 0) -> None:
        """Write a part of a tensor, from row `first` on; the part may be the whole tensor."""
        place = self._places[name]
        assert tuple(part.shape[1:]) == place.shape[1:]
        width = prod(place.shape[1:])
        self._write(place.offset + first * width * place.dtype.itemsize, part.to("cpu", place.dtype))

    def put_columns(self, name: str, part: Tensor, first: int) -> None:
        """Write columns of a matrix, from column `first` on; each row of `part` is a column."""
        place = self._places[name]
        rows, columns = place.shape
        assert part.shape[1] == rows
        for row, values in enumerate(part.to("cpu", place.dtype).T.contiguous()):
            self._write(place.offset + (row * columns + first) * place.dtype.itemsize, values)

    def publish(self, path: Path) -> None:
        """Give the file its final name, once all of it is on the disk."""
        os.fsync(self._file)
        os.replace(self._path, path)

    def _write(self, offset: int, values: Tensor) -> None:
        left = values.detach().contiguous().numpy().reshape(-1).data.cast("B")
        while left:
            written = os.pwrite(self._file, left, offset)
            left, offset = left[written:], offset + written


class TorchFile(SlicedFile):
    """An archive as torch.save writes it, whose checksums are filled in after the tensors."""

    def publish(self, path: Path) -> None:
        """Fill in the checksums, then give the file its final name."""
        with zipfile.ZipFile(self._path) as archive, open(self._path, "r+b") as file:
            at = archive.start_dir
            # The directory has its records in the order of infolist.
            for entry in archive.infolist():
                file.seek(at)
                record = file.read(ZIP_RECORD)
                if PurePath(entry.filename).parent.name == STORAGES:
                    checksum = _checksum(file, data_offset(file, entry), entry.file_size)
                    if file.read(len(ZIP_DESCRIPTOR)) == ZIP_DESCRIPTOR:
                        file.write(checksum)
                    file.seek(at + ZIP_RECORD_CRC)
                    file.write(checksum)
                at += ZIP_RECORD + sum(_numbers(record, ZIP_RECORD_LENGTHS))
        super().publish(path)


def data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return the offset of an entry's bytes in the archive."""
    file.seek(entry.header_offset)
    return entry.header_offset + ZIP_HEADER + sum(_numbers(file.read(ZIP_HEADER), ZIP_HEADER_LENGTHS))


def _numbers(record: bytes, places: tuple[int, ...]) -> list[int]:
    return [int.from_bytes(record[at : at + 2], "little") for at in places]


def _checksum(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return the CRC-32 of a stretch of a file, and leave the file at its end."""
    file.seek(offset)
    found = 0
    while size:
        piece = file.read(min(size, PIECE_BYTES))
        found, size = zlib.crc32(piece, found), size - len(piece)
    return found.to_bytes(4, "little")


def safetensors_file(path: Path, shapes: Shapes, metadata: dict[str, str] | None = None) -> SlicedFile:
    """Make a safetensors file of float32 tensors, whose values are still to be written.

    The format (huggingface/safetensors): length of the header, header in JSON, the tensors' bytes.
    """
    places, offset = {}, 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | (metadata or {})}
    for name, shape in shapes.items():
        end = offset + prod(shape) * torch.float32.itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        places[name] = TensorSpan(offset, shape, torch.float32)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    begin = 8 + len(text)
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    reserve(path, begin + offset)
    return SlicedFile(
        path, {n: TensorSpan(begin + p.offset, p.shape, torch.float32) for n, p in places.items()}
    )


def torch_file(path: Path, state: dict[str, Tensor]) -> SlicedFile:
    """Make a file as torch.save writes it, whose tensors' values are still to be written.

    Args:
        state: tensors by name, for shapes and dtypes only (see `untouched`).
    """
    try:
        with torch.serialization.skip_data():
            torch.save(state, path)
    except RuntimeError as error:  # torch's writer does not say what the system said
        try:
            _write_at(path, sum(each.nbytes for each in state.values()))
        finally:
            path.unlink(missing_ok=True)
        raise OSError(first_line(error)) from error
    names, places = list(state), {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            inside = PurePath(entry.filename)
            if inside.parent.name == STORAGES:
                # Storages are numbered in the order in which torch.save meets them.
                name = names[int(inside.name)]
                tensor = state[name]
                places[name] = TensorSpan(data_offset(file, entry), tuple(tensor.shape), tensor.dtype)
    assert set(places) == set(state)
    reserve(path, path.stat().st_size)
    return TorchFile(path, places)


def _write_at(path: Path, offset: int) -> None:
    """Write a byte at an offset of a file, to learn why that cannot be done."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.pwrite(file, b"\0", offset)
    finally:
        os.close(file)


@contextmanager
def untouched(folder: Path, shapes: Shapes) -> Iterator[dict[str, Tensor]]:
    """Yield float32 tensors of any size that take no memory and no disk while nobody reads their values."""
    hole = folder / ".untouched.tmp"
    try:
        found = {}
        for name, shape in shapes.items():
            with open(hole, "wb") as file:
                file.truncate(prod(shape) * torch.float32.itemsize)
            found[name] = torch.from_file(str(hole), shared=True, size=prod(shape)).view(shape)
            hole.unlink()
        yield found
    finally:
        hole.unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """Set a file's length, and reserve its blocks on the disk where the system can."""
    try:
        with open(path, "r+b") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
            path.unlink(missing_ok=True)
            raise


@contextmanager
def writing(folder: Path, *lists: Sequence[str]) -> Iterator[None]:
    """Make a folder for a dictionary's files, list their checksums, and report errors of writing in it.

    Args:
        lists: the names of the files of each list; see `core.sums`.

    Raises:
        SaeDistError: the folder or a file could not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with listing(folder, *lists):
            yield
    except OSError as error:
        what = error.filename if isinstance(error.filename, str) else str(folder)
        how = remedy(error)
        raise SaeDistError(
            f"cannot write {what}: {error.strerror or error}; {f'{how} and ' if how else ''}export again"
        ) from None
