"""The measured speed of matrix products on this device: a data sheet's peak says little about a machine."""

import time

import torch

SIZES = {"cuda": 8192, "cpu": 512}
"""On a GPU large enough that a launch is nothing beside the product."""
WITHIN_S = 0.05
REPEATS = 20


def gemm_rate(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> float:
    """Measure operations per second of a square matrix product in the fastest of `dtypes`, best of many.

    Takes about 0.1 s for each dtype. On a GPU it waits for the device, so it must run before training.
    """
    return max(_rate(device, dtype) for dtype in dtypes)


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of products of random numbers: those of equal ones draw less power, and are faster."""
    size = SIZES.get(device.type, SIZES["cpu"])
    made = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=made).to(dtype) for _ in range(2))
    out = a @ b
    seconds = _launched(a, b, out) if device.type == "cuda" else _one_by_one(a, b, out)
    return 2 * size**3 / seconds


def _launched(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    """Return the device's seconds for a product, of REPEATS that follow each other without a gap."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(REPEATS):
        torch.mm(a, b, out=out)
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000 / REPEATS


def _one_by_one(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    """Return the least seconds of a product."""
    best, until = float("inf"), time.perf_counter() + WITHIN_S
    for _ in range(REPEATS):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - began)
        if time.perf_counter() > until:
            break
    return best
