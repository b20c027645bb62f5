"""Runs that are hit on the way, and what they leave beside one that was left alone."""

import time
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from tests.helpers.commands import rows
from tests.helpers.small_llm import SMALL

LENGTH = ["train_tokens=19200", "checkpoint.every=1920", "activations.scaling=centred", "hook=layers.0"]
LENGTH += SMALL
"""A hundred steps on the small model, a checkpoint every ten."""
SPLIT = ["topology.producers=1", "topology.shard=2", "topology.timeout_s=300"]
TIMES = ("perf/", "gpu/", "host/")


def wait_for_checkpoint(process: Any, run: Path, after: str | None = None, timeout_s: float = 180) -> str:
    """Until there is a checkpoint, other than `after`; its name."""
    latest, until = run / "checkpoints" / "latest", time.monotonic() + timeout_s
    while not latest.exists() or latest.read_text().strip() in (after, ""):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no checkpoint in time"
        time.sleep(0.02)
    return latest.read_text().strip()


def rank_process(process: Any, rank: int) -> psutil.Process:
    """The process of a rank, among the children of the command."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank) and "rank" in child.cmdline():
            return child
    raise AssertionError(f"no process of rank {rank}")


def results(run: Path) -> list[dict[str, Any]]:
    """What a run computed, step by step; not how fast."""
    return [{key: row[key] for key in row if not key.startswith(TIMES)} for row in rows(run)]


def same_weights(one: Path, other: Path) -> bool:
    """Whether the exports of two runs are equal bit for bit."""
    ours, theirs = (load_file(run / "export" / "sae_weights.safetensors") for run in (one, other))
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[key]) for key, tensor in ours.items())


def values(found: list[dict[str, Any]], key: str) -> list[Any]:
    """A column of the rows of metrics."""
    return [row[key] for row in found]


def relative(found: list[float], expected: list[float]) -> list[float]:
    """How far each number is off, as a share of the one expected."""
    return [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
