"""The measured speed of matrix products on this device: a data sheet's peak says little about a machine."""

import time

import torch

SIZES = {"cuda": 4096, "cpu": 512}
WITHIN_S = 0.05
REPEATS = 20


def gemm_rate(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> float:
    """Measure operations per second of a square matrix product in the fastest of `dtypes`, best of many.

    Takes about 0.1 s for each dtype. On a GPU it waits for the device, so it must run before training.
    """
    return max(_rate(device, dtype) for dtype in dtypes)


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    size = SIZES.get(device.type, SIZES["cpu"])
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    out = a @ b
    best, until = float("inf"), time.perf_counter() + WITHIN_S
    for _ in range(REPEATS):
        _finish(device)
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        _finish(device)
        best = min(best, time.perf_counter() - began)
        if time.perf_counter() > until:
            break
    return 2 * size**3 / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
