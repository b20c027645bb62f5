"""The purposes of folders that are frozen: a run, or an activation cache."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.config.resolve import identity
from sae_dist.config.rules.checkpoint import checkpoint_bytes, most_checkpoints, weight_bytes
from sae_dist.config.run import Resolved, Single
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG, FINISHED, status
from sae_dist.core.text import gib

SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class FolderKind:
    """The purpose of a folder: a run, or an activation cache.

    Attributes:
        noun: what messages call it.
        doing: what is done to it, for the message to a second process.
        config: the name of its frozen config.
        identity: returns the values of a resolved config that may not change.
        is_finished: returns whether nothing is left to do in the folder.
        space: given a config and the width of the rows, returns the bytes that it needs, what for, and how to
            need fewer.
    """

    noun: str
    doing: str
    config: str
    identity: Callable[[Resolved], dict[str, Any]]
    is_finished: Callable[[Path], bool]
    space: Callable[[Single, int], tuple[int, str, str]]


def is_finished(folder: Path) -> bool:
    """Return whether training and evaluation are done."""
    return status(folder) == FINISHED


def _run_space(cfg: Single, width: int) -> tuple[int, str, str]:
    """Return the bytes of all checkpoints (weights and two moments) and the export."""
    kept = most_checkpoints(cfg)
    needed = checkpoint_bytes(cfg, width) * kept + weight_bytes(cfg, width)
    return needed, f"{kept} checkpoints and the export", "lower checkpoint.keep"


RUN = FolderKind("run", "trained", CONFIG, identity, is_finished, _run_space)


def check_space(cfg: Resolved, folder: Path, noun: str, space: tuple[int, str, str]) -> None:
    """Check that there is room for a folder.

    Args:
        space: see `FolderKind.space`; summed over a grid's dictionaries.

    Raises:
        ConfigError: there is not.
    """
    needed, what, fewer = space[0] + SPARE_BYTES, *space[1:]
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"output={cfg.output} has {gib(free)} free and this {noun} needs about {gib(needed)} for "
            f"{what}; make room, {fewer}, or choose another output="
        )
