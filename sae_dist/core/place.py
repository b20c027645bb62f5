"""The place of this process among those of a run, read from the launcher's variables.

Needs no torch: wrong input is answered before that is imported.
"""

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Place:
    """The number of a process among `world`, and among those of its machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def launcher() -> Literal["torchrun", "srun"] | None:
    """Return what started this process as one of several ranks; None: nothing did.

    A Slurm batch script has SLURM_PROCID too and is no rank: only a step of several tasks is joined.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return "torchrun"
    in_step = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    return "srun" if in_step else None


def launched() -> bool:
    """Return whether a launcher started this process as a rank."""
    return launcher() is not None


def place() -> Place:
    """Read the launcher's variables; without a launcher, this is the only process there is."""
    env, started_by = os.environ, launcher()
    if started_by is None:
        return Place(0, 1, 0, 1)
    if started_by == "torchrun":
        local = int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", 1))
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), *local)
    tasks, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", 1))
    return Place(int(env["SLURM_PROCID"]), tasks, int(env.get("SLURM_LOCALID", 0)), tasks // nodes)
