"""The checkpoints of a run: which there are, which of them are sound, and how one is read as a whole.

Letters: as core.types; N rows that are asked for.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sae_dist.checkpoint.storage import (
    TENSORS,
    damage,
    opened,
    read_scalars,
    saved_offsets,
    stored_tensors,
)
from sae_dist.core.errors import CheckpointError
from sae_dist.core.run_folder import CHECKPOINTS
from sae_dist.core.text import class_and_line, print_line


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(path.name[5:])


def complete(checkpoints: Path) -> list[Path]:
    """List the complete checkpoints in a `checkpoints` folder, oldest first."""
    found = [path for path in checkpoints.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def newest(folder: Path) -> Path | None:
    """Find the newest sound checkpoint of a run folder and print those that are damaged; None: there is none.

    Raises:
        CheckpointError: all of them are damaged.
    """
    found = complete(folder / CHECKPOINTS)
    problems = []
    for path in reversed(found):
        problem = damage(path)
        if problem is None:
            return path
        problems.append(problem)
        print_line(passed_over(folder, problem))
    if problems:
        raise CheckpointError(none_left(folder, problems))
    return None


def passed_over(folder: Path, problem: str) -> str:
    """Return the line that names a damaged checkpoint which is skipped."""
    return f"{folder}: checkpoint passed over: {problem}"


def none_left(folder: Path, problems: list[str]) -> str:
    """Return the message for a run folder whose checkpoints are all damaged."""
    return (
        f"{folder} has no sound checkpoint ({'; '.join(problems)}); copy one back, or remove its "
        f"{CHECKPOINTS} to train from the start"
    )


def load_full(path: Path, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read whole tensors and the scalars in one process, with or without a process group.

    Raises:
        CheckpointError: a tensor is missing or cannot be read.
    """
    stored = stored_tensors(path)
    for name in names:
        check_shape(path, stored, name, None)
    full = {n: torch.empty(stored[n].size, dtype=stored[n].properties.dtype) for n in names}
    fill(full, path)
    return full, read_scalars(path)


def fill(tensors: dict[str, Tensor], path: Path) -> None:
    """Fill tensors from a checkpoint: of a DTensor, this rank's rows. Other ranks are not asked.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    except CheckpointException as error:
        ((cause, _),) = error.failures.values()
        raise CheckpointError(f"cannot read checkpoint {path}: {class_and_line(cause)}") from None


class StoredRows:
    """The tensors of a checkpoint, read by rows from files that any number of ranks wrote.

    A file is mapped only while rows of it are read: mapped pages count as memory of the process.
    """

    def __init__(self, path: Path):
        """Index the tensors of a checkpoint.

        Raises:
            CheckpointError: a file is not readable.
        """
        self._path = path
        self._sizes = {name: tuple(entry.size) for name, entry in stored_tensors(path).items()}
        self._parts: dict[str, list[tuple[Path, int]]] = {}
        for file in sorted(path.glob(f"*{TENSORS}")):
            for name, offsets in saved_offsets(file).items():
                self._parts.setdefault(name, []).append((file, offsets[0] if offsets else 0))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self._sizes:
            has = ", ".join(sorted(self._sizes))
            raise CheckpointError(f"checkpoint {self._path} has no tensor {name}; it has {has}")
        return self._sizes[name]

    def rows(self, name: str, index_N: Tensor) -> Tensor:
        """Read rows of a tensor along dim 0, in any order.

        Raises:
            CheckpointError: there is no such tensor, or its files do not hold these rows.
        """
        found: Tensor | None = None
        missing = len(index_N)
        for file, first in self._parts.get(name, []):
            with opened(file) as reader:
                part = reader.get_tensor(name)
                here = ((index_N >= first) & (index_N < first + len(part))).nonzero()[:, 0]
                if found is None:
                    found = part.new_empty(len(index_N), *self.shape(name)[1:])
                found[here] = part[index_N[here] - first]
                missing -= len(here)
        if found is None or missing > 0:
            raise CheckpointError(f"checkpoint {self._path} does not hold all rows of {name}")
        return found


def check_shape(
    path: Path, stored: dict[str, TensorStorageMetadata], name: str, shape: tuple[int, ...] | None
) -> None:
    """Check that a checkpoint has a tensor and, unless `shape` is None, that it has this shape.

    Raises:
        CheckpointError: the tensor is missing or has another shape.
    """
    if name not in stored:
        raise CheckpointError(f"checkpoint {path} has no tensor {name}; it has {', '.join(sorted(stored))}")
    if shape is not None and tuple(stored[name].size) != shape:
        raise CheckpointError(
            f"checkpoint {path}: {name} has shape {list(stored[name].size)}, this run needs {list(shape)}"
        )
