"""The contestants of the quality benchmark: each trains in its process and leaves weights in one layout.

A trial's job is a JSON file; the process reads it, trains, and writes weights.safetensors (W_enc [F, D],
b_enc, W_dec [F, D], b_dec) and trained.json beside it. Letters: as core.types.
"""

import json
import math
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_dist.bench.contestant import JOB, LOG, Contestant, TrialFailed, ended_with_us, last_line
from sae_dist.bench.quality.plan import QualityPlan
from sae_dist.core.files import write_json

OURS = "sae_dist.bench.quality.ours"
TRAINED = "trained.json"


@dataclass(frozen=True, kw_only=True)
class QualityContestant(Contestant):
    """A trainer whose learning rate is swept; ours takes words of `sae-dist train` as its variant.

    Attributes:
        first_lr: where the sweep begins for 500 steps and 4096 latents.
        dead_at_most: only learning rates with at most this share of dead latents may win; None: any.
    """

    first_lr: float
    dead_at_most: float | None = None

    def begin_at(self, steps: int, latents: int) -> float:
        """Return the first learning rate of the sweep, on a grid of powers of two around `first_lr`."""
        guess = self.first_lr * (500 / steps) ** 0.25 * (4096 / latents) ** 0.5
        return self.first_lr * 2.0 ** round(math.log2(guess / self.first_lr))


CONTESTANTS = {
    each.name: each
    for each in (
        QualityContestant("ours", "sae_dist", None, OURS, first_lr=1.6e-2, dead_at_most=0.05),
        QualityContestant("saelens", "SAELens", "saelens", "train_saelens.py", first_lr=2e-3),
        QualityContestant(
            "sparsify", "sparsify (signum)", "sparsify", "train_sparsify.py", "signum", first_lr=4e-3
        ),
        QualityContestant(
            "sparsify_adam", "sparsify (adam)", "sparsify", "train_sparsify.py", "adam", first_lr=8e-3
        ),
        QualityContestant(
            "dictionary_learning",
            "dictionary_learning",
            "dictionary_learning",
            "train_dictionary_learning.py",
            first_lr=4e-3,
        ),
    )
}


@dataclass(frozen=True)
class Trial:
    """The job of one training: a contestant's process reads it as JSON.

    Attributes:
        rows, order: files of activations and of row numbers in the order of training.
        folder: where the process leaves its results.
    """

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
    variant: str


def run_trial(contestant: QualityContestant, plan: QualityPlan, trial: Trial) -> dict[str, Any]:
    """Train in a process that ends with this one; return its trained.json.

    Raises:
        TrialFailed: it ended with an error, or without weights.
    """
    folder = Path(trial.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = contestant.command(plan.folder, plan.peer_python)
    write_json(folder / JOB, asdict(trial))
    with open(folder / LOG, "w", encoding="utf-8") as out:
        child = subprocess.Popen(
            [*words, str(folder / JOB)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=contestant.environment(),
        )
        started = time.monotonic()
        with ended_with_us(child):
            code = child.wait()
    if code or not (folder / TRAINED).exists():
        raise TrialFailed(last_line(folder / LOG) or f"exit code {code}, and not a word")
    trained = json.loads((folder / TRAINED).read_text(encoding="utf-8"))
    return trained | {"process_seconds": time.monotonic() - started}
