"""What a process watches itself with, shared by the dictionaries that it trains."""

from dataclasses import dataclass

import torch

from sae_dist.core.config import RunConfig
from sae_dist.core.types import Precision
from sae_dist.dist.control import Control
from sae_dist.dist.mesh import Topology
from sae_dist.dist.runtime import Place
from sae_dist.metrics.clock import PhaseClock
from sae_dist.metrics.gemm import gemm_rate
from sae_dist.metrics.telemetry import Telemetry


@dataclass
class Watch:
    """Clock of the phases; telemetry, where this rank samples or writes it.

    gemm_flops  operations per second of matrix products, measured, all consumers of the group together
    """

    clock: PhaseClock
    telemetry: Telemetry | None = None
    gemm_flops: float | None = None

    def measure(self, cfg: RunConfig, topology: Topology, device: torch.device) -> None:
        """Measure this consumer's matrix products, and add up those of its group, before training."""
        rate = torch.tensor([gemm_rate(device, dtypes(cfg, device))], dtype=torch.float64, device=device)
        self.gemm_flops = float(topology.consumers.sum(rate))

    def close(self) -> None:
        """End the thread."""
        if self.telemetry is not None:
            self.telemetry.close()


def start_telemetry(
    cfg: RunConfig, where: Place, topology: Topology, device: torch.device, control: Control
) -> Telemetry | None:
    """Begin to sample on this rank, if that is its part; None: telemetry is off."""
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


def dtypes(cfg: RunConfig, device: torch.device) -> tuple[torch.dtype, ...]:
    """Those that a step multiplies in: the weights', and bfloat16 where candidates are found in it."""
    master = Precision.of(cfg.precision).master
    screens = cfg.kernels == "triton" or (
        device.type == "cpu"
        and cfg.kernels == "torch"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return (master, torch.bfloat16) if screens and master == torch.float32 else (master,)
