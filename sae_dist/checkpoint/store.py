"""Checkpoints on disk: complete or absent, and readable under any (shard, dp).

Tensors are stored by torch.distributed.checkpoint (DCP). A DTensor label tells DCP which rows a
rank holds; the mesh order is (shard, dp), see `dist.mesh`.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, empty
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from sae_dist.core.errors import CheckpointError
from sae_dist.core.files import sync_folder

CHECKPOINTS = "checkpoints"
STATE_FILE = "state.json"
LATEST = "latest"
SPARE_BYTES = 16 << 20  # state.json, DCP's metadata and its per-tensor overhead

Tensors = dict[str, tuple[Tensor, str]]
"""Name -> (this rank's tensor, how it lies over the mesh).

"sharded": rows split over the shard axis, the same on every replica; "owned": each shard's rows split again
over the replicas; "replicated": the same on every rank.
"""
PLACEMENTS: dict[str, list[Any]] = {"sharded": [Shard(0), Replicate()], "owned": [Shard(0), Shard(0)]}


class HasMesh(Protocol):
    """What `Checkpoints` needs of the topology."""

    leads: bool
    consumer_group: Any
    mesh: DeviceMesh


class Checkpoints:
    """Writes and reads the checkpoints of one run. Every consumer rank calls the same methods.

    Args:
        folder: the run folder; checkpoints are in its `checkpoints`.
        keep: how many of the newest checkpoints stay.
    """

    def __init__(self, folder: Path, topology: HasMesh, keep: int):
        self._folder, self._topology, self._keep = folder / CHECKPOINTS, topology, keep
        self._group = topology.consumer_group
        self._leads = topology.leads

    def save(self, step: int, tensors: Tensors, scalars: dict[str, Any]) -> Path:
        """Write `step_<n>`: into a temporary folder, renamed when every rank is done.

        `scalars` must be JSON-able and equal on all ranks. A step that is already there stays.

        Raises:
            CheckpointError: it could not be written, on every rank; older checkpoints are intact.
        """
        final = self._folder / f"step_{step:08d}"
        temporary = self._folder / f".step_{step}.tmp"
        need, state = self._bytes_needed(tensors), json.dumps(scalars)
        if self._together(lambda: self._prepare(final, temporary, need)) == "exists":
            return final
        writer = dcp.FileSystemWriter(temporary, sync_files=True)
        try:
            dcp.save(self._label(tensors), storage_writer=writer, process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(self._cannot_write(need, _first_cause(error))) from None
        self._together(lambda: self._publish(final, temporary, state, need))
        return final

    def load(self, path: Path, tensors: Tensors) -> dict[str, Any]:
        """Fill `tensors` in place from a checkpoint written under any (shard, dp).

        Returns:
            The scalars.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or cannot be read.
        """
        labelled = self._label(tensors)
        stored = _stored_tensors(path)
        for name, tensor in labelled.items():
            _check_shape(path, stored, name, tuple(tensor.shape))
        try:
            dcp.load(labelled, storage_reader=dcp.FileSystemReader(path), process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(f"cannot read checkpoint {path}: {_first_cause(error)}") from None
        return _scalars(path)

    def forget_after(self, path: Path | None) -> None:
        """Remove checkpoints newer than `path`, None: all: this run goes back and writes them again.

        Raises:
            CheckpointError: one could not be removed.
        """
        self._together(lambda: self._forget_after(path))

    def _forget_after(self, path: Path | None) -> str:
        found = complete(self._folder)
        later = found[found.index(path) + 1 :] if path else found
        if later and path:
            self._point_at(path)
        elif later:
            (self._folder / LATEST).unlink(missing_ok=True)
        for doomed in later:
            self._remove(doomed)
        return "removed"

    @staticmethod
    def newest(folder: Path) -> Path | None:
        """The newest complete checkpoint of a run folder, if there is one."""
        found = complete(folder / CHECKPOINTS)
        return found[-1] if found else None

    def _label(self, tensors: Tensors) -> dict[str, Tensor]:
        mesh = self._topology.mesh
        return {
            name: DTensor.from_local(tensor.detach(), mesh, PLACEMENTS[layout], run_check=False)
            if layout in PLACEMENTS
            else tensor.detach()
            for name, (tensor, layout) in tensors.items()
        }

    def _bytes_needed(self, tensors: Tensors) -> int:
        shards = self._topology.mesh.size(0)
        copies = {"sharded": shards, "owned": shards * self._topology.mesh.size(1), "replicated": 1}
        return SPARE_BYTES + sum(t.nbytes * copies[how] for t, how in tensors.values())

    def _prepare(self, final: Path, temporary: Path, need: int) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left_over in self._folder.glob(".step_*.tmp"):
            shutil.rmtree(left_over)
        if final.exists():
            return "exists"
        if shutil.disk_usage(self._folder).free < need:
            raise CheckpointError(self._cannot_write(need, "No space left on device"))
        temporary.mkdir()
        return "ready"

    def _publish(self, final: Path, temporary: Path, state: str, need: int) -> str:
        try:
            _write_synced(temporary / STATE_FILE, state)
            os.replace(temporary, final)
            self._point_at(final)
            sync_folder(self._folder)
        except OSError as error:
            raise CheckpointError(self._cannot_write(need, str(error))) from None
        for path in complete(self._folder)[: -self._keep]:
            self._remove(path)
        return "published"

    def _point_at(self, path: Path) -> None:
        _write_synced(self._folder / ".latest.tmp", path.name + "\n")
        os.replace(self._folder / ".latest.tmp", self._folder / LATEST)

    def _remove(self, path: Path) -> None:
        # Renamed first: half removed under its own name it would still look complete.
        doomed = self._folder / f".{path.name}.tmp"
        os.replace(path, doomed)
        shutil.rmtree(doomed)

    def _together(self, act: Callable[[], str]) -> str:
        """The first rank acts; every rank gets its answer, or raises what it raised."""
        outcome: list[Any] = [None, None]
        if self._leads:
            try:
                outcome[0] = act()
            except (CheckpointError, OSError) as error:
                outcome[1] = str(error)
        dist.broadcast_object_list(outcome, group_src=0, group=self._group)
        if outcome[1] is not None:
            raise CheckpointError(outcome[1])
        return outcome[0]

    def _cannot_write(self, need: int, cause: str) -> str:
        free = shutil.disk_usage(self._folder).free
        return (
            f"cannot write a checkpoint in {self._folder}: {cause} "
            f"({free / 2**20:,.0f} MiB free, {need / 2**20:,.0f} MiB needed); older checkpoints are intact"
        )


def complete(checkpoints: Path) -> list[Path]:
    """The complete checkpoints in a `checkpoints` folder, oldest first."""
    found = [p for p in checkpoints.glob("step_*") if (p / STATE_FILE).exists() and p.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_full(path: Path, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Whole tensors and the scalars, in one process, with or without a process group.

    Raises:
        CheckpointError: a tensor is missing or cannot be read.
    """
    stored = _stored_tensors(path)
    for name in names:
        _check_shape(path, stored, name, None)
    full = {n: empty(stored[n].size, dtype=stored[n].properties.dtype) for n in names}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(full, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    except CheckpointException as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {_first_cause(error)}") from None
    return full, _scalars(path)


def _stored_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    try:
        entries = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    except (OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error}") from None
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _check_shape(
    path: Path, stored: dict[str, TensorStorageMetadata], name: str, shape: tuple[int, ...] | None
) -> None:
    if name not in stored:
        raise CheckpointError(f"checkpoint {path} has no tensor {name}; it has {', '.join(sorted(stored))}")
    if shape is not None and tuple(stored[name].size) != shape:
        raise CheckpointError(
            f"checkpoint {path}: {name} has shape {list(stored[name].size)}, this run needs {list(shape)}"
        )


def _scalars(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {STATE_FILE}: {error}") from None


def _first_cause(error: CheckpointException) -> str:
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause) else ''}"


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
