"""The files of a checkpoint: safetensors, JSON, and a checksum of each. Nothing is unpickled.

DCP's usual storage keeps its metadata as a pickle, which runs code when it is read. Its safetensors storage
does not: each rank's file states which rows of which tensor it holds.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

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


class SafetensorsWriter(dcp.HuggingFaceStorageWriter):
    """A writer for DCP: one safetensors file per rank that has anything to write.

    The base class serialises a file in memory, which takes three times its size and holds the interpreter's
    lock; here the tensors are written straight to the disk.

    Attributes:
        files: after the save, on the rank that coordinates it: name -> size and checksum of every file.
    """

    def __init__(self, path: Path):
        super().__init__(str(path), save_distributed=True)
        self.files: dict[str, dict[str, Any]] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's rows; the results carry the file's checksum."""
        written: Future[list[WriteResult]] = Future()
        if not plan.items:
            written.set_result([])
            return written
        name = f"rows_{plan.storage_data['shard_index']:05d}{TENSORS}"
        path = Path(self.path) / name
        tensors = {item.index.fqn: _tensor(planner.resolve_data(item)) for item in plan.items}
        places = {item.index.fqn: {"saved_offsets": list(_offsets(item))} for item in plan.items}
        write_tensors(path, tensors, {PLACES: json.dumps(places), "format": "pt"})
        summary = checksum(path, sync=True)
        written.set_result(
            [WriteResult(i.index, tensors[i.index.fqn].nbytes, (name, summary)) for i in plan.items]
        )
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Collect the checksums of all ranks. The files themselves list their tensors."""
        self.files = {each.storage_data[0]: each.storage_data[1] for rank in results for each in rank}


def _tensor(data: Any) -> Tensor:
    assert isinstance(data, Tensor), "only tensors are given to DCP"
    return data.contiguous()


def _offsets(item: WriteItem) -> Iterable[int]:
    assert item.tensor_data is not None, "only tensors are given to DCP"
    return item.tensor_data.chunk.offsets


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
