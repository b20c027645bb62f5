"""Measures where each dictionary's time, memory and energy go, for metrics.jsonl and summary.json."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sae_dist.config.run import Resolved
from sae_dist.core.place import Place
from sae_dist.core.text import GIB
from sae_dist.core.types import Precision
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.metrics.clock import PHASES, PhaseClock, Phases
from sae_dist.metrics.gemm import gemm_rate
from sae_dist.metrics.profiler import ProfileWindow
from sae_dist.metrics.telemetry import Telemetry

BUSY = ("encode", "select", "exchange", "decode", "backward", "step")
"""The phases in which the operations that `config.needs` counts are done."""
STEPS = "phases of steps"
TERA = 1e12


@dataclass
class Watch:
    """The clock and telemetry that a process watches itself with.

    Attributes:
        clock: of the phases of a step.
        telemetry: on a rank that samples or writes it.
        gemm_flops: operations per second of matrix products, measured, all consumers of the group together.
    """

    clock: PhaseClock
    telemetry: Telemetry | None = None
    gemm_flops: float | None = None

    def measure(self, cfg: Resolved, topology: Topology, device: torch.device) -> None:
        """Measure this consumer's matrix products, and add up those of its group, before training."""
        rate = torch.tensor([gemm_rate(device, dtypes(cfg, device))], dtype=torch.float64, device=device)
        self.gemm_flops = float(topology.consumers.sum(rate))

    def close(self) -> None:
        """Stop the thread that samples."""
        if self.telemetry is not None:
            self.telemetry.close()


def start_telemetry(
    cfg: Resolved, where: Place, topology: Topology, device: torch.device, control: Control
) -> Telemetry | None:
    """Begin to sample on this rank, if that is its part; None if telemetry is off."""
    if cfg.metrics.telemetry_s is None:
        return None
    return Telemetry(
        cfg.metrics.telemetry_s,
        control,
        rank=where.rank,
        world=where.world,
        local_rank=where.local_rank,
        collects=topology.leads,
        device=device,
    )


def dtypes(cfg: Resolved, device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes of a step's matrix products: the weights', and bfloat16 where it finds candidates."""
    master = Precision.of(cfg.precision).master
    screens = cfg.kernels == "triton" or (
        device.type == "cpu"
        and cfg.kernels == "torch"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return (master, torch.bfloat16) if screens and master == torch.float32 else (master,)


class Speed:
    """The time, memory and energy of one dictionary, by its process's `Watch`.

    Args:
        flops: operations of a step, all ranks together.
        gpus: number that the whole run has, if telemetry counts none.
    """

    def __init__(self, watch: Watch, flops: float, device: torch.device, gpus: int):
        self.watch, self.flops, self.device, self.gpus = watch, flops, device, gpus
        self.phases = Phases()
        self.profile: ProfileWindow | None = None
        self.seen = 0
        self.started = time.monotonic()
        self.before = {"gpu_hours": 0.0, "joules": 0.0}

    def begin(self, step: int) -> None:
        """Begin to time step `step`, counted from 1."""
        if self.profile:
            self.profile.before(step)
        self.watch.clock.begin(self.phases)

    def end(self, step: int) -> None:
        """Stop timing the step."""
        self.watch.clock.end()
        if self.profile:
            self.profile.after(step)

    def record(self, record: Callable[[str, float, str], None]) -> None:
        """Record this rank's part of a row, without waiting for the device."""
        self.watch.clock.settle()
        seconds, steps = self.phases.take()
        for phase in PHASES:
            record(f"perf/{phase}_ms", 1000 * seconds[phase], "sum")
        record(STEPS, steps, "sum")
        record("perf/peak_memory_gib", peak_memory_bytes(self.device) / GIB, "max")

    def row(self, sums: dict[str, float]) -> dict[str, float]:
        """Return columns made of what was recorded, taken out of `sums`, and samples of GPUs and hosts."""
        steps = sums.pop(STEPS)
        times = {f"perf/{phase}_ms": sums.pop(f"perf/{phase}_ms") for phase in PHASES}
        row: dict[str, float] = {}
        if steps:  # none before the device has passed the first one
            row = {name: total / steps for name, total in times.items()}
            busy_s = sum(row[f"perf/{phase}_ms"] for phase in BUSY) / 1000
            if busy_s > 0:
                row["perf/dictionary_tflops"] = self.flops / busy_s / TERA
                if self.watch.gemm_flops:
                    row["perf/gemm_share"] = self.flops / busy_s / self.watch.gemm_flops
        telemetry = self.watch.telemetry
        if telemetry is not None and telemetry.number > self.seen:
            self.seen = telemetry.number
            row |= telemetry.row
        return row

    def spent(self) -> dict[str, float]:
        """Return GPU hours and joules of the whole run, over all of its starts; checkpoints keep them."""
        telemetry = self.watch.telemetry
        gpus = telemetry.num_gpus if telemetry and telemetry.num_gpus else self.gpus
        joules = telemetry.row.get("gpu/energy_j", 0.0) if telemetry else 0.0
        hours = (time.monotonic() - self.started) / 3600
        return {
            "gpu_hours": self.before["gpu_hours"] + gpus * hours,
            "joules": self.before["joules"] + joules,
        }

    def summary(self, tokens: int) -> dict[str, Any]:
        """Return the entries of summary.json."""
        found: dict[str, Any] = {}
        if self.watch.gemm_flops:
            found["gemm_tflops"] = self.watch.gemm_flops / TERA
        spent = self.spent()
        if spent["gpu_hours"]:
            found["gpu_hours"] = spent["gpu_hours"]
        if spent["joules"]:
            found["joules"] = spent["joules"]
            found["joules_per_million_tokens"] = spent["joules"] / tokens * 1e6
        return found

    def close(self) -> None:
        """Write the trace of a profile during which the run ended."""
        if self.profile:
            self.profile.close()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most bytes that this process held: of the device, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
