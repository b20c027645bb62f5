"""Checkpoints on disk: complete or absent, checked, and readable under any (shard, dp).

Tensors are stored by torch.distributed.checkpoint (DCP). A DTensor label tells DCP which rows a
rank holds; the mesh order is (shard, dp), see `distributed.mesh`.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from sae_dist.checkpoint.background import Background, SaveJob
from sae_dist.checkpoint.read import check_shape, complete, first_cause, step_of
from sae_dist.checkpoint.storage import (
    SafetensorsWriter,
    damage,
    read_scalars,
    seal,
    stored_tensors,
)
from sae_dist.core.errors import CheckpointError
from sae_dist.core.files import sync, write_text
from sae_dist.core.owner import Standing
from sae_dist.core.run_folder import CHECKPOINTS, LATEST
from sae_dist.core.staging import Staging
from sae_dist.core.text import MIB, print_line

LEAVE_S = 10.0
ABOUT_SPACE = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
SPARE_BYTES = 16 << 20  # state.json, checksums, and what a file system needs for itself

Tensors = dict[str, tuple[Tensor, str]]
"""Name -> (this rank's tensor, how it lies over the mesh).

"sharded": rows split over the shard axis, the same on every replica; "owned": each shard's rows split again
over the replicas; "replicated": the same on every rank.
"""
PLACEMENTS: dict[str, list[Any]] = {"sharded": [Shard(0), Replicate()], "owned": [Shard(0), Shard(0)]}


class HasMesh(Protocol):
    """The part of the topology that `Checkpoints` needs: its own process group, and a mesh on the host."""

    leads: bool
    checkpoint_group: Any
    mesh: DeviceMesh


class Checkpoints:
    """The checkpoints of one run, to write and to read. Every consumer rank calls the same methods.

    Args:
        folder: the run folder; checkpoints are in its `checkpoints`.
        keep: how many of the newest checkpoints are kept.
        keep_steps: checkpoints at its multiples are kept too; None: no others.
        background: writes while training goes on; None: `save` returns when all is written.
        standing: asked before each write whether the folder still is this run's; None: it is nobody else's.
        staging: copies from a GPU at its full rate; None: as torch copies.
    """

    def __init__(
        self,
        folder: Path,
        topology: HasMesh,
        keep: int,
        keep_steps: int | None = None,
        background: Background | None = None,
        standing: Standing | None = None,
        staging: Staging | None = None,
    ):
        self._folder, self._topology = folder / CHECKPOINTS, topology
        self._keep, self._keep_steps, self._background = keep, keep_steps, background
        self._group, self._leads, self._standing = topology.checkpoint_group, topology.leads, standing
        self._job: SaveJob | None = None
        self._copies: dict[str, Tensor] = {}
        self._staging = staging
        self._waited = False

    def save(self, step: int, tensors: Tensors, scalars: dict[str, Any]) -> Path:
        """Write `step_<n>` into a temporary folder, which is renamed when every rank is done.

        With `background`, copy the tensors to the host and return; if the previous checkpoint is still being
        written, wait for it first. `scalars` must be JSON-able and equal on all ranks. A step that already
        has a checkpoint keeps it.

        Raises:
            CheckpointError: this checkpoint, or the one before, could not be written; older ones are intact.
        """
        if self._job is not None and not self._job.done() and self._leads and not self._waited:
            self._waited = True
            print_line(
                f"step {step}: waits for the previous checkpoint; checkpoint.every is short for this disk"
            )
        self.wait()
        final, state = self._folder / f"step_{step:08d}", json.dumps(scalars)
        if self._background is None:
            self._write(final, tensors, state)
        else:
            copies = self._copy(tensors)
            self._job = self._background.start(lambda: self._write(final, copies, state))
        return final

    def wait(self) -> None:
        """Wait until no checkpoint is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def leave(self) -> None:
        """Wait briefly for a checkpoint that is being written: this rank has failed and is about to exit."""
        if self._job is not None:
            self._job.leave(LEAVE_S)

    def check(self) -> None:
        """Report, without waiting, a checkpoint that could not be written.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._job is not None and self._job.done():
            self.wait()

    def load(self, path: Path, tensors: Tensors) -> dict[str, Any]:
        """Fill `tensors` in place from a checkpoint written under any (shard, dp).

        Returns:
            The scalars.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or cannot be read.
        """
        host = {name: (_on_host(tensor), how) for name, (tensor, how) in tensors.items()}
        labelled, stored = self._label(host), stored_tensors(path)
        for name, tensor in labelled.items():
            check_shape(path, stored, name, tuple(tensor.shape))
        try:
            reader = dcp.HuggingFaceStorageReader(str(path))
            dcp.load(labelled, storage_reader=reader, process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(f"cannot read checkpoint {path}: {first_cause(error)}") from None
        for name, (tensor, _) in tensors.items():
            if tensor.device.type != "cpu":
                tensor.detach().copy_(host[name][0])
        return read_scalars(path)

    def damage(self, path: Path) -> str | None:
        """Return what is wrong with a checkpoint, on every rank; each rank reads a part of its files."""
        parts = dist.get_world_size(self._group)
        found: list[Any] = [None] * parts
        dist.all_gather_object(found, damage(path, dist.get_rank(self._group), parts), group=self._group)
        return next((each for each in found if each is not None), None)

    def forget_after(self, path: Path | None) -> None:
        """Remove checkpoints newer than `path` (None: all): this run restarts there and writes them again.

        Raises:
            CheckpointError: one could not be removed.
        """
        self._together(lambda: self._forget_after(path))

    def _forget_after(self, path: Path | None) -> str:
        self._check_standing()
        found = complete(self._folder)
        later = found[found.index(path) + 1 :] if path else found
        if later and path:
            self._point_at(path)
        elif later:
            (self._folder / LATEST).unlink(missing_ok=True)
        for doomed in later:
            self._remove(doomed)
        return "removed"

    def _copy(self, tensors: Tensors) -> Tensors:
        """Copy the tensors as they are now to the host, into memory that every checkpoint uses again."""
        staged = []
        for name, (tensor, _) in tensors.items():
            if name not in self._copies:
                self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            if self._staging is not None and tensor.is_cuda:
                staged.append((tensor, self._copies[name]))
            else:
                self._copies[name].copy_(tensor.detach())
        if self._staging is not None:
            self._staging.copy(staged)
        return {name: (self._copies[name], how) for name, (_, how) in tensors.items()}

    def _label(self, tensors: Tensors) -> dict[str, Tensor]:
        mesh = self._topology.mesh
        return {
            name: DTensor.from_local(tensor.detach().cpu(), mesh, PLACEMENTS[layout], run_check=False)
            if layout in PLACEMENTS
            else tensor.detach().cpu()
            for name, (tensor, layout) in tensors.items()
        }

    def _write(self, final: Path, tensors: Tensors, state: str) -> None:
        need = self._bytes_needed(tensors)
        name = self._together(lambda: self._prepare(final, need))
        if not name:
            return
        temporary = self._folder / name
        writer = SafetensorsWriter(temporary)
        try:
            dcp.save(self._label(tensors), storage_writer=writer, process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(self._cannot_write(need, first_cause(error))) from None
        self._together(lambda: self._publish(final, temporary, state, writer.files, need))

    def _bytes_needed(self, tensors: Tensors) -> int:
        shards = self._topology.mesh.size(0)
        copies = {"sharded": shards, "owned": shards * self._topology.mesh.size(1), "replicated": 1}
        return SPARE_BYTES + sum(t.nbytes * copies[how] for t, how in tensors.values())

    def _prepare(self, final: Path, need: int) -> str:
        """Make a folder to write to, and return its name; empty if this checkpoint is there already."""
        self._check_standing()
        self._folder.mkdir(parents=True, exist_ok=True)
        for left_over in self._folder.glob(".step_*.tmp"):
            shutil.rmtree(left_over)
        if final.exists():
            return ""
        if shutil.disk_usage(self._folder).free < need:
            raise CheckpointError(self._cannot_write(need, os.strerror(errno.ENOSPC)))
        # A name of its own: a rank that a killed run left behind writes into no other's files.
        temporary = self._folder / f".{final.name}.{secrets.token_hex(4)}.tmp"
        temporary.mkdir()
        return temporary.name

    def _publish(
        self, final: Path, temporary: Path, state: str, files: dict[str, dict[str, Any]], need: int
    ) -> str:
        self._check_standing()
        try:
            seal(temporary, state, files)
            os.replace(temporary, final)
            self._point_at(final)
            sync(self._folder)
        except OSError as error:
            raise CheckpointError(self._cannot_write(need, str(error))) from None
        for path in complete(self._folder)[: -self._keep]:
            if self._keep_steps is None or step_of(path) % self._keep_steps:
                self._remove(path)
        return "published"

    def _check_standing(self) -> None:
        if self._standing is not None:
            self._standing.check()

    def _point_at(self, path: Path) -> None:
        write_text(self._folder / LATEST, path.name + "\n", synced=True)

    def _remove(self, path: Path) -> None:
        # Renamed first: under its own name a half-removed checkpoint would look complete.
        doomed = self._folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
        os.replace(path, doomed)
        shutil.rmtree(doomed)

    def _together(self, act: Callable[[], str]) -> str:
        """Call `act` on the first rank; return its result, or raise its error, on every rank."""
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
        """Return the message: what the system said, and numbers of space where it was about space."""
        space = ""
        if any(words in cause for words in ABOUT_SPACE):
            free = shutil.disk_usage(self._folder).free
            space = f" ({free / MIB:,.0f} MiB free, {need / MIB:,.0f} MiB needed)"
        return f"cannot write a checkpoint in {self._folder}: {cause}{space}; older checkpoints are intact"


def _on_host(tensor: Tensor) -> Tensor:
    """Return where a tensor's content is read to: the tensor itself if it is on the host, else a new one."""
    return tensor.detach() if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
