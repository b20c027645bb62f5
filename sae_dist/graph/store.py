"""The rows of a graph on the disk: blocks of targets, each a file that is complete or absent.

Letters: as core.types; n targets of a block, C sources.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_tensors
from sae_dist.core.parsing import check_header, reading

HELD_BYTES = 1 << 30
"""So much of the rows is kept in memory when it has been read."""


@dataclass
class Store:
    """Rows of a graph in a folder, block by block.

    Attributes:
        columns: the number C of sources.
        blocks: numbers of the blocks that are complete, in the order of their making.
    """

    folder: Path
    columns: int
    dtype: torch.dtype
    blocks: list[int] = field(default_factory=list)
    _held: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def path(self, block: int) -> Path:
        """Return the file of a block."""
        return self.folder / f"rows-{block:05d}.safetensors"

    def write(self, block: int, targets_n: Tensor, rows_nC: Tensor) -> None:
        """Write a block, complete or absent."""
        write_tensors(
            self.path(block),
            {"targets": targets_n.cpu(), "rows": rows_nC.detach().cpu().contiguous()},
            {"targets": json.dumps(targets_n.tolist())},
        )

    def has(self, block: int, targets_n: Tensor) -> bool:
        """Return whether a block is there.

        Raises:
            ConfigError: its file is damaged, or holds other targets.
        """
        path = self.path(block)
        if not path.is_file():
            return False
        with reading(path, "is damaged ({reason}); remove it"):
            check_header(path)
            with safe_open(path, "pt") as file:
                found = file.get_tensor("targets")
                shape = file.get_slice("rows").get_shape()
        if found.tolist() != targets_n.tolist() or shape != [len(targets_n), self.columns]:
            raise ConfigError(f"{path} is of another graph; give another folder, or remove it")
        return True

    def read(self, block: int) -> tuple[Tensor, Tensor]:
        """Return the targets [n] and rows [n, C] of a block.

        Raises:
            ConfigError: its file is damaged.
        """
        if block in self._held:
            return self._held[block]
        path = self.path(block)
        with reading(path, "is damaged ({reason}); remove it"):
            check_header(path)
            with safe_open(path, "pt") as file:
                targets_n, rows_nC = file.get_tensor("targets"), file.get_tensor("rows")
        whole = targets_n.dtype == torch.int64 and rows_nC.shape == (len(targets_n), self.columns)
        if not whole or rows_nC.dtype != self.dtype or not bool(rows_nC.isfinite().all()):
            raise ConfigError(f"{path} is damaged (its rows are not those of the graph); remove it")
        if sum(rows.nbytes for _, rows in self._held.values()) + rows_nC.nbytes <= HELD_BYTES:
            self._held[block] = targets_n, rows_nC
        return targets_n, rows_nC
