"""The rates that floors are made of: bytes of a large copy and operations of a large product in a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from sae_dist.bench.peers.step_io import synchronize

REPEATS = 9
GPU_BYTES, CPU_BYTES = 2**30, 2**27
GPU_SIDE, CPU_SIDE = 8192, 1024


@dataclass(frozen=True)
class Rates:
    """Bytes per second of a large copy, operations per second of a large product."""

    copied: float
    multiplied: float


def measured(device: torch.device) -> Rates:
    """Measure both, the best of a few: floors are the least time, and other work only slows.

    On a CPU they are per second of processor time and thread, which others on the machine take nothing from.
    """
    on_gpu = device.type == "cuda"
    source = torch.ones(GPU_BYTES if on_gpu else CPU_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side, dtype = (GPU_SIDE, torch.bfloat16) if on_gpu else (CPU_SIDE, torch.float32)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    copy_s = _least_s(partial(target.copy_, source), device)
    product_s = _least_s(partial(torch.mm, one, other), device)
    return Rates(2 * source.numel() / copy_s, 2.0 * side**3 / product_s)


def _least_s(act: Callable[[], object], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found = []
    for _ in range(REPEATS):
        synchronize(device)
        began = clock()
        act()
        synchronize(device)
        found.append(clock() - began)
    return min(found) / (1 if device.type == "cuda" else torch.get_num_threads())
