"""Checkpoints on disk: complete or absent, checked, and readable under any (shard, dp).

Files have the layout that torch.distributed.checkpoint (DCP) reads. What the ranks tell each other is JSON.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from sae_dist.checkpoint.background import Background, SaveJob
from sae_dist.checkpoint.layout import Tensors, label, places_of
from sae_dist.checkpoint.read import check_shape, complete, fill, step_of
from sae_dist.checkpoint.storage import (
    TENSORS,
    damage,
    read_scalars,
    seal,
    stored_tensors,
    write_rows,
)
from sae_dist.core.errors import CheckpointError
from sae_dist.core.files import FULL, in_words, sync, write_text
from sae_dist.core.owner import Standing
from sae_dist.core.run_folder import CHECKPOINTS, LATEST
from sae_dist.core.staging import Staging
from sae_dist.core.text import MIB, class_and_line, print_line
from sae_dist.distributed.collectives import Axis

LEAVE_S = 10.0
SPARE_BYTES = 16 << 20  # state.json, checksums, and what a file system needs for itself


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
        self._ranks = Axis("checkpoints", topology.checkpoint_group)
        self._leads, self._standing = topology.leads, standing
        self._job: SaveJob | None = None
        self._copies: dict[str, Tensor] = {}
        self._staging = staging
        self._waited = False

    def save(self, step: int, tensors: Tensors, scalars: dict[str, Any]) -> Path:
        """Write `step_<n>` into a temporary folder, which is renamed when every rank is done.

        With `background`, copy the tensors to the host and return; if the previous checkpoint is still being
        written, wait for it first. `scalars` must be JSON-able; those of the first rank are written. A step
        that already has a checkpoint keeps it.

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
        labelled, stored = label(host, self._topology.mesh), stored_tensors(path)
        for name, tensor in labelled.items():
            check_shape(path, stored, name, tuple(tensor.shape))
        self._on_all(lambda: fill(labelled, path))
        for name, (tensor, _) in tensors.items():
            if tensor.device.type != "cpu":
                tensor.detach().copy_(host[name][0])
        return read_scalars(path)

    def damage(self, path: Path) -> str | None:
        """Return what is wrong with a checkpoint, on every rank; each rank reads a part of its files."""
        found = self._ranks.gather_json(damage(path, self._ranks.rank, self._ranks.size))
        return next((each for each in found if each is not None), None)

    def forget_after(self, path: Path | None) -> None:
        """Remove checkpoints newer than `path` (None: all): this run restarts there and writes them again.

        Raises:
            CheckpointError: one could not be removed.
        """
        self._together(lambda: self._forget_after(path))

    def _forget_after(self, path: Path | None) -> None:
        self._check_standing()
        found = complete(self._folder)
        later = found[found.index(path) + 1 :] if path else found
        if later and path:
            self._point_at(path)
        elif later:
            (self._folder / LATEST).unlink(missing_ok=True)
        for doomed in later:
            self._remove(doomed)

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

    def _write(self, final: Path, tensors: Tensors, state: str) -> None:
        need = self._bytes_needed(tensors)
        name = self._together(lambda: self._prepare(final, need))
        if not name:
            return
        # Of what comes from another process only a name: it leads into no other folder.
        temporary = self._folder / Path(name).name
        try:
            written = self._on_all(lambda: self._write_rows(temporary, tensors, need))
            files = {name: summary for each in written for name, summary in each.items()}
            self._together(lambda: self._publish(final, temporary, state, files, need))
        except CheckpointError:
            if self._leads:
                # What was written takes the space that is missing.
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _bytes_needed(self, tensors: Tensors) -> int:
        shards = self._topology.mesh.size(0)
        copies = {"sharded": shards, "owned": shards * self._topology.mesh.size(1), "replicated": 1}
        return SPARE_BYTES + sum(t.nbytes * copies[how] for t, how in tensors.values())

    def _prepare(self, final: Path, need: int) -> str:
        """Make a folder to write to, and return its name; empty if this checkpoint is there already."""
        self._check_standing()
        with self._writing(need):
            self._folder.mkdir(parents=True, exist_ok=True)
            for left_over in self._folder.glob(".step_*.tmp"):
                shutil.rmtree(left_over)
            if final.exists():
                return ""
            if shutil.disk_usage(self._folder).free < need:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # A name of its own: a rank that a killed run left behind writes into no other's files.
            temporary = self._folder / f".{final.name}.{secrets.token_hex(4)}.tmp"
            temporary.mkdir()
        return temporary.name

    def _write_rows(self, folder: Path, tensors: Tensors, need: int) -> dict[str, Any]:
        """Write what is this rank's to write; return size and checksum of its file, by the file's name."""
        places = places_of(tensors, self._topology.mesh)
        if not places:
            return {}
        name = f"rows_{self._ranks.rank + 1:05d}{TENSORS}"
        rows = {each: (tensors[each][0].detach().cpu(), place) for each, place in places.items()}
        with self._writing(need):
            return {name: write_rows(folder / name, rows)}

    def _publish(
        self, final: Path, temporary: Path, state: str, files: dict[str, dict[str, Any]], need: int
    ) -> None:
        self._check_standing()
        with self._writing(need):
            seal(temporary, state, files)
            os.replace(temporary, final)
            self._point_at(final)
            sync(self._folder)
            for path in complete(self._folder)[: -self._keep]:
                if self._keep_steps is None or step_of(path) % self._keep_steps:
                    self._remove(path)

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

    def _together(self, act: Callable[[], Any]) -> Any:
        """Call `act` on the first rank; return its result, or raise its error, on every rank."""
        return self._on_all(act if self._leads else lambda: None)[0]

    def _on_all(self, act: Callable[[], Any]) -> list[Any]:
        """Call `act` on every rank; return the results by rank, or raise the first error, on every rank."""
        outcome: list[Any] = [None, None]
        try:
            outcome[0] = act()
        except CheckpointError as error:
            outcome[1] = str(error)
        except Exception as error:
            outcome[1] = f"rank {dist.get_rank()}: {class_and_line(error)}"
        each = self._ranks.gather_json(outcome)
        for _, problem in each:
            if problem is not None:
                raise CheckpointError(problem)
        return [result for result, _ in each]

    @contextmanager
    def _writing(self, need: int) -> Iterator[None]:
        """Turn an error of the system into a line: what it said, and of space where that is missing."""
        try:
            yield
        except OSError as error:
            space, where = "", f"rank {dist.get_rank()}: " if self._ranks.size > 1 else ""
            if error.errno in (*FULL, errno.EFBIG):
                free = shutil.disk_usage(self._folder.parent).free
                space = f" ({free / MIB:,.0f} MiB free, {need / MIB:,.0f} MiB needed)"
            raise CheckpointError(
                f"cannot write a checkpoint in {self._folder}: {where}{in_words(error)}{space}; "
                "older checkpoints are intact"
            ) from None


def _on_host(tensor: Tensor) -> Tensor:
    """Return where a tensor's content is read to: the tensor itself if it is on the host, else a new one."""
    return tensor.detach() if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
