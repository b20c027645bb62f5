"""First steps on a GPU: does it hold? Sizes at the limit, the last row's update, a resume.

Letters: as core.types.
"""

import gc
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch

from sae_dist.bench.contestant import TrialFailed
from sae_dist.bench.first.right import Found, made_stepper
from sae_dist.bench.peers.step_io import Memory
from sae_dist.core.errors import NumericsError
from sae_dist.core.run_folder import CHECKPOINTS, LATEST, METRICS

TRAIN = (sys.executable, "-m", "sae_dist.cli", "train")
REPEATED = 1e-6
"""The largest difference of a loss, as a share, between two runs of one seed on one machine."""
LR = 1e-3
STEPS = 10
ALLOWED = 1e-5
"""The largest error of the last row after a step of Adam, as a share of its norm."""


def last_row(device: torch.device, small: bool) -> Found:
    """Compare torch's fused Adam on more than 2^31 numbers with its formula, on the last row.

    Raises:
        NumericsError: the last row did not move as it should.
    """
    F, D = (4096, 64) if small else (2**20, 2304)
    made = torch.Generator(device).manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(F, D, generator=made, device=device))
    weight.grad = torch.randn(F, D, generator=made, device=device)
    before, grad = weight[-1].detach().double(), weight.grad[-1].double()
    torch.optim.Adam([weight], lr=LR, fused=True).step()
    wanted = before - LR * grad / (grad.abs() + 1e-8)  # after one step both moments are the gradient's own
    moved = (weight[-1].detach().double() - before).norm()
    off = float((weight[-1].detach().double() - wanted).norm() / before.norm())
    if not off <= ALLOWED or not moved > 0:
        raise NumericsError(f"the last of {F:,} rows is off by {off:.2g} of its norm after a step of Adam")
    return {"numbers": float(F * D), "last_row_error": off}


def wide(device: torch.device, small: bool) -> Found:
    """Train 2^20 latents of width 2304 for some steps."""
    return training(device, *((64, 8192, 8, 256) if small else (2304, 2**20, 32, 8192)))


def widest(device: torch.device, small: bool) -> Found:
    """Train 2.5 million latents of width 2304, with an optimizer that keeps one moment a row."""
    words = ("optim=row_adam", "optim.beta1=0")
    return training(device, *((64, 16384, 8, 256) if small else (2304, 2_500_000, 32, 8192)), words)


def resumed(device: torch.device, small: bool) -> Found:
    """Compare a run that is killed after its first checkpoint and goes on with one left alone, by its losses.

    Raises:
        NumericsError: the losses differ.
        TrialFailed: a run ended otherwise than it should.
    """
    latents, width, batch, steps = (1024, 64, 256, 60) if small else (131072, 2304, 2048, 60)
    words = [
        *("activations=synthetic", f"activations.width={width}", f"sae.num_latents={latents}"),
        *(f"device={device.type}", "metrics.wandb=off", "metrics.every=1", "eval.tokens=0"),
        *(f"batch={batch}", f"train_tokens={steps * batch}", f"checkpoint.every={steps // 6 * batch}"),
    ]
    command([*words, "name=whole"])
    stopped = Path("outputs/stopped")
    latest = stopped / CHECKPOINTS / LATEST
    process = subprocess.Popen([*TRAIN, *words, "name=stopped"])
    while process.poll() is None and not latest.exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    if not latest.exists():
        raise TrialFailed("the run that was to be killed wrote no checkpoint")
    at = int(latest.read_text().strip().removeprefix("step_"))
    began = time.monotonic()
    command([*words, "name=stopped", "resume=auto"])
    took = time.monotonic() - began
    whole, found = (losses(folder) for folder in (Path("outputs/whole"), stopped))
    if whole.keys() != found.keys() or at >= steps:
        raise TrialFailed(f"continued at step {at} of {steps}, it has rows of {len(found)} steps")
    differ = [step for step in whole if whole[step] != found[step]]
    worst = max(abs(found[step] / whole[step] - 1) for step in whole)
    if worst > REPEATED:
        raise NumericsError(
            f"{len(differ)} losses differ after a resume at step {at}, by {worst:.2g} at most"
        )
    return {"resumed_at": float(at), "seconds": took, "losses_that_differ": len(differ), "most": worst}


def command(words: list[str]) -> None:
    """Train in a process of its own, to its end."""
    code = subprocess.run([*TRAIN, *words]).returncode
    if code:
        raise TrialFailed(f"sae-dist train {' '.join(words)} ended with code {code}")


def losses(run: Path) -> dict[int, float]:
    """Return the FVU of every step of a run, by step."""
    rows = map(json.loads, (run / METRICS).read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["loss/fvu"] for row in rows}


def training(
    device: torch.device, width: int, latents: int, k: int, batch: int, words: tuple[str, ...] = ()
) -> Found:
    """Time training steps of a shape, and note the most memory."""
    memory = Memory(device)
    memory.reset_peak()
    stepper, x_BD = made_stepper(device, width, latents, k, batch, words)
    stepper.run(3)
    took = stepper.run(STEPS) / STEPS
    loss = float(stepper.squared_error(x_BD[:256]))
    peak = memory.peak()
    del stepper
    gc.collect()
    if not math.isfinite(loss):
        raise NumericsError(f"the loss is {loss} after {STEPS} steps of {latents:,} latents")
    return {"step_ms": 1e3 * took, "tokens_per_s": batch / took, "peak_gb": peak / 1e9}
