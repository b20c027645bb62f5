"""The files of a checkpoint: safetensors, JSON, and a checksum of each. Nothing is unpickled.

DCP's usual storage keeps its metadata as a pickle, which runs code when it is read. The layout of its
safetensors storage does not: each rank's file states which rows of which tensor it holds. Its `save` has the
ranks send each other pickled plans, so files are written here, and read by its reader, without other ranks.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sae_dist.core.errors import CheckpointError
from sae_dist.core.files import sync, write_tensors, write_text
from sae_dist.core.parsing import parse_json, parsing_errors, read_bounded, reading, reason_of
from sae_dist.core.sums import checksum

STATE_FILE = "state.json"
LONGEST_NAME = 255
CHECKSUMS = "checksums.json"
TENSORS = ".safetensors"
PLACES = "DCP_SHARDING_INFO"
"""The metadata key under which dcp.HuggingFaceStorageReader finds a file's rows, as "saved_offsets"."""


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
    if not (folder / CHECKSUMS).is_file():
        return f"{folder.name}/{CHECKSUMS} is missing"
    try:
        files = parse_json(read_bounded(folder / CHECKSUMS), unique=True)["files"]
        sealed = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except parsing_errors() as error:
        return f"{folder.name}/{CHECKSUMS} is not readable ({type(error).__name__})"
    stray = {path.name for path in folder.glob(f"*{TENSORS}")} - set(sealed)
    for name in sorted(stray):
        return f"{folder.name}/{name} does not belong to it"
    for name, (size, digest) in sorted(sealed.items())[part::parts]:
        if Path(name).name != name or len(name) > LONGEST_NAME:
            return f"{folder.name}/{CHECKSUMS} names a file outside of its folder, {name[:LONGEST_NAME]}"
        try:
            found = checksum(folder / name)
        except FileNotFoundError:
            return f"{folder.name}/{name} is missing"
        except (OSError, ValueError) as error:
            return f"{folder.name}/{name} cannot be read ({reason_of(error)})"
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
    with reading("cannot read checkpoint", f"{folder}: {{reason}}", CheckpointError):
        entries = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a file of tensors, mapped as long as it and its tensors are in use.

    Raises:
        CheckpointError: it is not readable.
    """
    with reading("cannot read checkpoint", f"{file.parent}: {file.name}: {{reason}}", CheckpointError):
        with safe_open(file, framework="pt") as reader:
            yield reader


def saved_offsets(file: Path) -> dict[str, list[int]]:
    """Return where each tensor of a file begins (row and column) in the checkpoint's whole tensor.

    Raises:
        CheckpointError: the file is not readable.
    """
    with opened(file) as reader:
        places = parse_json(reader.metadata()[PLACES])
        return {name: list(place["saved_offsets"]) for name, place in places.items()}


def read_scalars(folder: Path) -> dict[str, Any]:
    """Read the scalars of a checkpoint.

    Raises:
        CheckpointError: its file is not readable.
    """
    with reading("cannot read checkpoint", f"{folder}: {STATE_FILE}: {{reason}}", CheckpointError):
        found = parse_json(read_bounded(folder / STATE_FILE))
        if not isinstance(found, dict):
            raise ValueError("it holds no keys")
        return found
