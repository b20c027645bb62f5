"""The files of a checkpoint: safetensors, JSON, and a checksum of each. Nothing is unpickled.

DCP's usual storage keeps its metadata as a pickle, which runs code when it is read. The layout of its
safetensors storage does not: each rank's file states which rows of which tensor it holds. Its `save` has the
ranks send each other pickled plans, so files are written here, and read by its reader, without other ranks.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sae_dist.core.errors import CheckpointError
from sae_dist.core.files import sync, write_tensors, write_text

STATE_FILE = "state.json"
CHECKSUMS = "checksums.json"
TENSORS = ".safetensors"
PLACES = "DCP_SHARDING_INFO"
"""The metadata key under which dcp.HuggingFaceStorageReader finds a file's rows, as "saved_offsets"."""
PIECE_BYTES = 1 << 20
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
"""What is raised by reading a damaged file."""


def write_rows(path: Path, rows: Mapping[str, tuple[Tensor, list[int]]]) -> dict[str, Any]:
    """Write the rows that one rank holds; return the file's size and sha256, once it is on the disk.

    The tensors are written straight to the disk: DCP's own writer serialises a file in memory, which takes
    three times its size and holds the interpreter's lock.

    Args:
        rows: by the tensor's name, its rows and where the first of them stands in the whole tensor.
    """
    places = {name: {"saved_offsets": offsets} for name, (_, offsets) in rows.items()}
    tensors = {name: part.contiguous() for name, (part, _) in rows.items()}
    write_tensors(path, tensors, {PLACES: json.dumps(places), "format": "pt"})
    return checksum(path, sync=True)


def checksum(path: Path, sync: bool = False) -> dict[str, Any]:
    """Return the size and sha256 of a file; with `sync`, once it is safely on the disk."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def seal(folder: Path, state: str, files: dict[str, dict[str, Any]]) -> None:
    """Write the scalars of a checkpoint, and the checksums of all its files."""
    write_text(folder / STATE_FILE, state, synced=True)
    files = {STATE_FILE: checksum(folder / STATE_FILE)} | files
    write_text(folder / CHECKSUMS, json.dumps({"files": files}, indent=1) + "\n", synced=True)
    sync(folder)


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Return what is wrong with a checkpoint's files; None: they are the files that were written.

    Args:
        part, parts: read every `parts`-th file only, from `part` on.
    """
    try:
        files = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        sealed = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{folder.name}/{CHECKSUMS} is missing"
    except UNREADABLE as error:
        return f"{folder.name}/{CHECKSUMS} is not readable ({type(error).__name__})"
    stray = {path.name for path in folder.glob(f"*{TENSORS}")} - set(sealed)
    for name in sorted(stray):
        return f"{folder.name}/{name} does not belong to it"
    for name, (size, digest) in sorted(sealed.items())[part::parts]:
        if Path(name).name != name:
            return f"{folder.name}/{CHECKSUMS} names a file outside of its folder, {name}"
        try:
            found = checksum(folder / name)
        except FileNotFoundError:
            return f"{folder.name}/{name} is missing"
        except OSError as error:
            return f"{folder.name}/{name} cannot be read ({error.strerror})"
        if found["bytes"] != size:
            return f"{folder.name}/{name} has {found['bytes']} bytes of {size}"
        if found["sha256"] != digest:
            return f"{folder.name}/{name} is not what was written: its sha256 differs"
    return None


def stored_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return the metadata of the tensors in a checkpoint, by name.

    Raises:
        CheckpointError: a file is not readable.
    """
    try:
        entries = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except UNREADABLE as error:
        raise CheckpointError(f"cannot read checkpoint {folder}: {' '.join(str(error).split())}") from None
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a file of tensors, mapped as long as it and its tensors are in use.

    Raises:
        CheckpointError: it is not readable.
    """
    try:
        with safe_open(file, framework="pt") as reader:
            yield reader
    except UNREADABLE as error:
        raise CheckpointError(
            f"cannot read checkpoint {file.parent}: {file.name}: {' '.join(str(error).split())}"
        ) from None


def saved_offsets(file: Path) -> dict[str, list[int]]:
    """Return where each tensor of a file begins (row and column) in the checkpoint's whole tensor.

    Raises:
        CheckpointError: the file is not readable.
    """
    with opened(file) as reader:
        places = json.loads(reader.metadata()[PLACES])
        return {name: list(place["saved_offsets"]) for name, place in places.items()}


def read_scalars(folder: Path) -> dict[str, Any]:
    """Read the scalars of a checkpoint.

    Raises:
        CheckpointError: its file is not readable.
    """
    try:
        return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read checkpoint {folder}: {STATE_FILE}: {error}") from None
