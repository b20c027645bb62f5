"""The job of a process that left a record, and whether Slurm's queue says that it has ended."""

import os
import re
import subprocess
from dataclasses import dataclass

TIMEOUT_S = 10
GONE = "Invalid job id specified"
"""Part of squeue's message about a job that it has forgotten."""
WITH_PROCESSES = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT")
"""States of a job that may have processes on its nodes."""


@dataclass(frozen=True)
class Job:
    """The Slurm job, and the step of it, that a process belongs to.

    Attributes:
        restarts: how often the job had been put back into the queue.
    """

    cluster: str
    number: str
    step: str
    restarts: int

    @classmethod
    def here(cls) -> "Job | None":
        """Return the job of this process; None: it belongs to none."""
        env = os.environ
        if "SLURM_JOB_ID" not in env:
            return None
        restarts = env.get("SLURM_RESTART_COUNT", "0")
        return cls(
            env.get("SLURM_CLUSTER_NAME", ""),
            env["SLURM_JOB_ID"],
            env.get("SLURM_STEP_ID", ""),
            int(restarts) if restarts.isdecimal() else 0,
        )

    def has_ended(self) -> bool:
        """Return whether Slurm says that this job, or its step, runs no more; False: it may still run."""
        mine = Job.here()
        if self.cluster != (mine.cluster if mine else _cluster()):
            return False  # numbers of jobs mean something within a cluster
        if mine is not None and mine.number == self.number and self.restarts < mine.restarts:
            return True
        states = _ask(["--jobs", self.number, "--format", "%T"])
        if states is not None and not set(states) & set(WITH_PROCESSES):
            return True
        steps = _ask(["--steps", "--jobs", self.number, "--format", "%i"]) if self.step else None
        return steps is not None and f"{self.number}.{self.step}" not in steps


def _ask(words: list[str]) -> list[str] | None:
    """Return the lines of squeue; [] for a job that it has forgotten, None: no answer."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", *words], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return [] if GONE in done.stderr else None
    return done.stdout.split()


def _cluster() -> str:
    """Return the name of the cluster that Slurm's commands ask here; empty: they do not say."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.MULTILINE)
    return found.group(1) if found else ""
