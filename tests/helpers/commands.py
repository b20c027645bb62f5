"""Runs the `sae-dist` command, and reads what it left."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.warm import warm

TINY = [
    "sae.num_latents=1024",
    "sae.k=16",
    "batch=768",
    "shuffle.chunk_rows=128",
    "shuffle.lanes=8",
    "metrics.every=1",
    "metrics.wandb=off",
    "eval.tokens=0",
]
"""A run of seconds on the embedded LM."""


def start(folder: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`sae-dist ...` in `folder`, a new interpreter for each process, on one thread."""
    command = [sys.executable, *launcher, "-m", "sae_dist.cli", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def sae_dist(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = (), timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """As `start`, to its end."""
    process = start(folder, *arguments, launcher=launcher)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end within {timeout_s} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def answer(err: str) -> str:
    """What a command wrote to stderr, without the lines that a slow machine gets while work goes on."""
    meanwhile = re.compile(r" \.\.\.$|, about [\d:]+ left$")
    return "".join(line for line in err.splitlines(keepends=True) if not meanwhile.search(line.rstrip("\n")))


def train(folder: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Train a tiny run to its end, on ranks that have imported everything; its rows of metrics."""
    done = warm(folder, "train", *TINY, f"name={name}", *overrides, ranks=ranks_of(overrides))
    assert done.returncode == 0, done.stderr
    return rows(folder / "outputs" / name)


def ranks_of(overrides: Sequence[str]) -> int:
    """Ranks of a run, by the words that name them."""
    given = dict(word.split("=", 1) for word in overrides)
    size = {key: int(given.get(f"topology.{key}", 1)) for key in ("groups", "shard", "dp")}
    producers = int(given.get("topology.producers", 0)) * int(given.get("llm.shard_size", 1))
    return producers + math.prod(size.values())


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run folder."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
