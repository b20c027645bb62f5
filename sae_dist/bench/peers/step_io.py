"""The parts that all contestants of `sae-dist bench step` share: problem, protocol, time and memory.

A contestant reads one JSON object a line on stdin and writes one answer to each into a pipe, whose number is
in the job as `answers`: libraries print on stdout as they please.

    {"do": "make", "width", "latents", "k", "batch", "dead_share"}    its dictionary, optimizer and batch
    {"do": "check"}                     FVU of its own forward on some rows of the batch
    {"do": "step", "steps", "warm", "dead"}     seconds of so many of its training steps
    {"do": "drop"}                      give the memory back
    {"do": "end"}

Runs in a peer's own Python: imports nothing of sae_dist.

Letters: as core.types.
"""

import gc
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

SEED = 0
ENCODER_SCALE = 0.577
SPREAD = 0.5
"""Biases, in units of a score's standard deviation: some latents fire often, many seldom, as in training."""
DEAD_BIAS = -2.0
"""In the same units, of the latents that are to be dead: none of them comes near the k best of a row."""
CHECKED = 1024
TINY = {"width": 64, "latents": 512, "k": 4, "batch": 64, "dead_share": 0.1}
LR = 1e-9
"""Of every contestant: weights stay what they are, so the same latents stay dead and no step differs."""


@dataclass
class Problem:
    """The weights and rows that all contestants share, drawn from one seed on the device that they run on.

    Attributes:
        W_dec_FD: unit rows; the encoder is `ENCODER_SCALE` times it. Gone once the contestant is made.
        x_BD: rows of standard normal values around b_dec.
        dead_F: True for the latents that count as dead where AuxK is to act.
        drawn: a number that is equal for equal problems.
    """

    ask: dict[str, Any]
    k: int
    device: torch.device
    W_dec_FD: Tensor
    b_enc_F: Tensor
    b_dec_D: Tensor
    x_BD: Tensor
    dead_F: Tensor
    drawn: float

    @property
    def latents(self) -> int:
        return len(self.b_enc_F)

    @property
    def width(self) -> int:
        return len(self.b_dec_D)

    @property
    def batch(self) -> int:
        return len(self.x_BD)

    def W_enc_FD(self) -> Tensor:
        """Return the encoder that goes with W_dec, a copy."""
        return ENCODER_SCALE * self.W_dec_FD


def draw(ask: dict[str, Any], device: torch.device) -> Problem:
    """Draw the problem of a shape."""
    F, D = ask["latents"], ask["width"]
    made = torch.Generator(device).manual_seed(SEED)
    W_dec_FD = torch.randn(F, D, generator=made, device=device)
    W_dec_FD.div_(W_dec_FD.norm(dim=1, keepdim=True))
    b_enc_F = SPREAD * torch.randn(F, generator=made, device=device)
    dead_F = torch.arange(F, device=device) >= F - int(ask["dead_share"] * F)
    b_enc_F = ENCODER_SCALE * torch.where(dead_F, DEAD_BIAS, b_enc_F)
    b_dec_D = 0.1 * torch.randn(D, generator=made, device=device)
    x_BD = torch.randn(ask["batch"], D, generator=made, device=device) + b_dec_D
    drawn = float(W_dec_FD[::97].double().sum() + b_enc_F.double().sum() + x_BD.double().sum())
    return Problem(ask, ask["k"], device, W_dec_FD, b_enc_F, b_dec_D, x_BD, dead_F, drawn)


class Stepper(Protocol):
    """A contestant's dictionary and optimizer, made for one problem.

    Attributes:
        settings: what is set, for the report.
    """

    settings: str

    def squared_error(self, x_BD: Tensor) -> Tensor:
        """Return the summed squared error of its own forward on some rows; changes nothing."""

    def revive(self, dead_F: Tensor | None) -> None:
        """Set its counters so that just these latents count as dead in the next step; None: no latent."""

    def num_dead(self) -> int:
        """Count the latents that are dead by its own rule."""

    def run(self, steps: int) -> float:
        """Make training steps on the whole batch; return their seconds."""


def sum_of_squares(error_BD: Tensor) -> Tensor:
    """Sum squares in float64, without a float64 copy of all rows."""
    return torch.stack([part.double().square().sum() for part in error_BD.split(256)]).sum()


def seconds_of(act: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of a call, the device's work included."""
    synchronize(device)
    started = time.perf_counter()
    act()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Memory:
    """Bytes of the problem and all that is made for it.

    On a GPU they are what torch has allocated, on a CPU the growth of the process since its libraries were
    imported.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.start = 0 if device.type == "cuda" else _resident("VmRSS")

    def held(self) -> int:
        """Give unused memory back; return the bytes that are left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            return torch.cuda.memory_allocated(self.device)
        return max(_resident("VmRSS") - self.start, 0)

    def reset_peak(self) -> None:
        """Begin to measure `peak` from now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS

    def peak(self) -> int:
        """Return the most bytes since `reset_peak`; without /proc, since the process began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(_resident("VmHWM") - self.start, 0)

    def room(self) -> int:
        """Return the bytes of the device; for a CPU, of the machine."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[1]
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _resident(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def read_job() -> SimpleNamespace:
    """Read the job (device, variant, answers) from the file that is the only argument."""
    job = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    job.device = torch.device(job.device)
    return job


def serve(
    job: SimpleNamespace,
    make: Callable[[Problem], Stepper],
    package: str | None,
    *,
    rehearse: bool = True,
) -> None:
    """Answer until stdin ends, as it does when the benchmark does.

    Args:
        package: distribution name of the peer, for its version.
        rehearse: take a step of a tiny problem first, on a CPU: libraries that are imported only then are not
            counted as memory of the step.
    """
    answers = os.fdopen(job.answers, "w", encoding="utf-8")
    if job.device.type == "cuda" and not torch.cuda.is_available():
        send(answers, {"error": "this Python's torch finds no CUDA device; install a CUDA build"})
        return
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    about["version"] = importlib.metadata.version(package) if package else ""
    if rehearse and job.device.type == "cpu":
        make(draw(TINY, job.device)).run(1)
        gc.collect()
    desk = Desk(job, make, Memory(job.device), about)
    for line in iter(sys.stdin.readline, ""):
        ask = json.loads(line)
        if ask["do"] == "end":
            break
        send(answers, desk.answer(ask))


def send(answers: TextIO, reply: dict[str, Any]) -> None:
    print(json.dumps(reply), file=answers, flush=True)


@dataclass
class Desk:
    """The answers to one question after the other."""

    job: SimpleNamespace
    make: Callable[[Problem], Stepper]
    memory: Memory
    about: dict[str, Any]
    problem: Problem | None = None
    made: Stepper | None = None

    def answer(self, ask: dict[str, Any]) -> dict[str, Any]:
        """Answer a question. An error is an answer too; after it, no memory is held."""
        try:
            return getattr(self, f"do_{ask['do']}")(ask)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": error_line(error), "memory": is_memory(error)}
        self.problem = self.made = None
        self.memory.held()
        return reply

    def do_make(self, ask: dict[str, Any]) -> dict[str, Any]:
        self.problem = self.made = None
        self.problem = draw(ask, self.job.device)
        self.made = self.make(self.problem)
        self.problem.W_dec_FD = torch.empty(0)
        found = {"settings": self.made.settings, "held": self.memory.held(), "room": self.memory.room()}
        return self.about | found

    def do_check(self, _ask: dict[str, Any]) -> dict[str, Any]:
        assert self.problem and self.made
        x_BD = self.problem.x_BD[:CHECKED]
        with torch.no_grad():
            error = float(self.made.squared_error(x_BD))
        return {"fvu": error / float(sum_of_squares(x_BD - x_BD.mean(0))), "drawn": self.problem.drawn}

    def do_step(self, ask: dict[str, Any]) -> dict[str, Any]:
        assert self.problem and self.made
        self.made.revive(self.problem.dead_F if ask["dead"] else None)
        if ask["warm"]:
            self.made.run(ask["warm"])
        self.memory.reset_peak()
        seconds = self.made.run(ask["steps"])
        peak = self.memory.peak()
        dead = self.made.num_dead()
        return {"seconds": seconds, "peak": peak, "held": self.memory.held(), "dead": dead}

    def do_drop(self, _ask: dict[str, Any]) -> dict[str, Any]:
        self.problem = self.made = None
        return {"held": self.memory.held()}


def is_memory(error: Exception) -> bool:
    """Return whether an error means too little memory; torch's CPU allocator has no class for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def error_line(error: Exception) -> str:
    """Describe an error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
