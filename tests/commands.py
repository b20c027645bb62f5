"""Runs the real `sae-dist` command, and reads what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = [
    "sae.num_latents=1024",
    "sae.k=16",
    "batch=768",
    "shuffle.chunk_rows=128",
    "metrics.every=1",
    "metrics.wandb=off",
    "eval.tokens=0",
]
"""A run of seconds on the embedded LM."""


def start(folder: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`sae-dist ...` in `folder`, each process on one thread."""
    command = [sys.executable, *launcher, "-m", "sae_dist.cli", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def sae_dist(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = (), timeout_s: float = 300
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


def train(folder: Path, name: str, *overrides: str, **options: Any) -> list[dict[str, Any]]:
    """Train a tiny run to its end; its rows of metrics."""
    done = sae_dist(folder, "train", *TINY, f"name={name}", *overrides, **options)
    assert done.returncode == 0, done.stderr
    return rows(folder / "outputs" / name)


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run folder."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
