"""Who competes: each trains in a process of its own and leaves weights in one layout.

A job is a JSON file; the process reads it, trains, and writes weights.safetensors (W_enc [F, D], b_enc,
W_dec [F, D], b_dec) and trained.json beside it.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_dist.bench.quality.plan import Plan
from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.files import write_json

PEERS = Path(__file__).parents[1] / "peers"


@dataclass(frozen=True)
class Contestant:
    """How to start one, and where its sweep begins.

    Attributes:
        peer: whose environment it needs; None: ours.
        script: in `peers/`; None: `sae_dist.bench.quality.ours`.
        variant: passed on to the script; for ours, words after `sae-dist train`.
        first_lr: where the sweep begins for 500 steps and 4096 latents.
        dead_at_most: only learning rates with at most this share of dead latents may win; None: any.
    """

    name: str
    label: str
    peer: str | None
    script: str | None
    first_lr: float
    variant: str | None = None
    dead_at_most: float | None = None

    def begin_at(self, steps: int, latents: int) -> float:
        """First learning rate of the sweep, on a grid of powers of two; the sweep itself corrects it."""
        guess = self.first_lr * (500 / steps) ** 0.25 * (4096 / latents) ** 0.5
        return self.first_lr * 2.0 ** round(math.log2(guess / self.first_lr))


CONTESTANTS = {
    each.name: each
    for each in (
        Contestant("ours", "sae_dist", None, None, 1.6e-2, dead_at_most=0.05),
        Contestant("saelens", "SAELens", "saelens", "train_saelens.py", 2e-3),
        Contestant("sparsify", "sparsify (signum)", "sparsify", "train_sparsify.py", 4e-3, "signum"),
        Contestant("sparsify_adam", "sparsify (adam)", "sparsify", "train_sparsify.py", 8e-3, "adam"),
        Contestant(
            "dictionary_learning",
            "dictionary_learning",
            "dictionary_learning",
            "train_dictionary_learning.py",
            4e-3,
        ),
    )
}


@dataclass(frozen=True)
class Job:
    """What a trial is told."""

    rows: str
    order: str
    folder: str
    num_latents: int
    k: int
    batch: int
    tokens: int
    dead_after: int
    lr: float
    seed: int
    device: str
    variant: str | None


class TrialFailed(SaeDistError):
    """A contestant is missing or broke down; its message is the last line it said."""


def command(contestant: Contestant, plan: Plan) -> list[str]:
    """The words that start a trial, short of the job.

    Raises:
        TrialFailed: the peer has no environment.
    """
    if contestant.peer is None or contestant.script is None:
        return [sys.executable, "-m", "sae_dist.bench.quality.ours"]
    python = interpreter(contestant.peer, plan.folder, plan.peer_python)
    return [python, str(PEERS / contestant.script)]


def interpreter(peer: str, folder: Path, given: dict[str, str]) -> str:
    """A peer's Python: the one that was given, or that of its environment in the benchmark's folder.

    Raises:
        TrialFailed: there is none.
    """
    python = Path(given[peer]) if peer in given else peer_environment(folder, peer)
    if not python.is_file():
        raise TrialFailed(
            f"{python} does not exist; make it with sae-dist bench peers --folder {folder}, or give "
            f"--peer-python {peer}=/path/to/python"
        )
    return str(python)


def peer_environment(folder: Path, peer: str) -> Path:
    """The Python that `sae-dist bench peers` makes."""
    return folder.absolute() / "peers" / peer / "bin" / "python"


def check_peer_python(given: dict[str, str]) -> None:
    """Names and interpreters of --peer-python.

    Raises:
        ConfigError: an unknown peer, or no such file.
    """
    known = sorted({each.peer for each in CONTESTANTS.values() if each.peer})
    for peer, python in given.items():
        if peer not in known:
            raise ConfigError(f"--peer-python {peer}={python}: the peers are {', '.join(known)}")
        if not Path(python).is_file():
            raise ConfigError(f"--peer-python {peer}={python} does not exist; give a Python interpreter")


def run_trial(contestant: Contestant, plan: Plan, job: Job) -> dict[str, Any]:
    """Train in a process that ends with this one; returns its trained.json.

    Raises:
        TrialFailed: it ended with an error, or without weights.
    """
    folder = Path(job.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = command(contestant, plan)
    write_json(folder / "job.json", asdict(job))
    log = folder / "log.txt"
    with open(log, "w", encoding="utf-8") as out:
        child = subprocess.Popen(
            [*words, str(folder / "job.json")],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=environment_of(contestant.peer),
        )
        started = time.monotonic()
        with ended_with_us(child):
            code = child.wait()
    if code or not (folder / "trained.json").exists():
        raise TrialFailed(last_line(log) or f"exit code {code}, and not a word")
    trained = json.loads((folder / "trained.json").read_text(encoding="utf-8"))
    return trained | {"process_seconds": time.monotonic() - started}


def environment_of(peer: str | None) -> dict[str, str]:
    """Environment variables of a contestant. Ours is this very package, wherever it was imported from; a
    peer must not see it."""
    found = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if peer is None:
        found["PYTHONPATH"] = str(Path(__file__).parents[3])
    return found | {"WANDB_MODE": "disabled", "TQDM_MININTERVAL": "30"}


@contextlib.contextmanager
def ended_with_us(child: subprocess.Popen) -> Iterator[None]:
    """A child does not outlive this process: killed when a signal stops us, or ended by its closed stdin."""

    def stop(number: int, _frame: object) -> None:
        child.kill()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdin:
            child.stdin.close()


def last_line(log: Path) -> str:
    """What a process said last, progress bars left out."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "it/s]" not in line]
    return lines[-1][:300] if lines else ""
