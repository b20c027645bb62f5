"""First steps on a GPU: how fast? Times of the step, rows scored again, block sizes, a profile.

Letters: as core.types.
"""

from itertools import product
from pathlib import Path

import torch

from sae_dist.bench.first.hold import training
from sae_dist.bench.first.right import Found, made_stepper
from sae_dist.bench.kernels import timed
from sae_dist.kernels.choose import choose_kernels

SHAPE, SMALL = (2304, 131072, 64, 8192), (64, 8192, 16, 256)
"""Width, latents, k and batch; those for a CPU."""
ROWS = 8192
STEEP = 0.5
"""The i-th singular value of activations with a steep spectrum is i to the power of minus this."""


def step(device: torch.device, small: bool) -> Found:
    """Time the whole step of a dictionary of 131,072 latents, without other trainers beside it."""
    return training(device, *(SMALL if small else SHAPE))


def redone(device: torch.device, small: bool) -> Found:
    """Count rows whose first candidates did not decide: of normal rows, and of rows with a steep spectrum."""
    kernels = choose_kernels("triton" if device.type == "cuda" else "torch")
    found: Found = {}
    for latents, k in ((131072, 32), (131072, 64), (2**20, 32)):
        D, F, B = (64, latents // 32, 512) if small else (2304, latents, ROWS)
        made = torch.Generator(device).manual_seed(0)
        W = torch.nn.functional.normalize(torch.randn(F, D, generator=made, device=device), dim=1)
        x = torch.randn(B, D, generator=made, device=device)
        steep = x * torch.arange(1, D + 1, device=device) ** -STEEP
        for name, rows in (("normal", x), ("steep", steep)):
            again = torch.zeros((), dtype=torch.int64, device=device)
            kernels.encode_topk(rows, W, torch.zeros(F, device=device), k, redone=again)
            found[f"{name}_{latents}_k{k}"] = int(again) / B
    return found


def blocks(device: torch.device, small: bool) -> Found:
    """Time the selection with other sizes of chunks and blocks than the ones that are set."""
    if device.type != "cuda":
        return {"note": "blocks are those of Triton's programs: nothing to time on a CPU"}
    from sae_dist.kernels import triton_plan, triton_select

    D, F, k, B = SHAPE
    made = torch.Generator(device).manual_seed(0)
    x, W = (torch.randn(rows, D, generator=made, device=device) for rows in (B, F))
    b = torch.zeros(F, device=device)
    kernels, found = choose_kernels("triton"), {}
    scores, block = triton_select.SCORES, triton_plan.SCREEN_BLOCK
    try:
        for power, size in product((23, 24, 25, 26), (512, 1024, 2048)):
            triton_select.SCORES, triton_plan.SCREEN_BLOCK = 2**power, size
            took = timed(lambda: kernels.encode_topk(x, W, b, k), device)
            found[f"scores_2^{power}_block_{size}_ms"] = 1e3 * took
            print(f"2^{power} scores, blocks of {size}: {1e3 * took:.2f} ms", flush=True)
    finally:
        triton_select.SCORES, triton_plan.SCREEN_BLOCK = scores, block
    return {"set": f"scores_2^{scores.bit_length() - 1}_block_{block}_ms", **found}


def profile(device: torch.device, small: bool) -> Found:
    """Profile five steps: the operations with most time on the device, and a trace beside the results."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    found: Found = {}
    for name, shape in {"wide": SHAPE, "narrow": (768, 32768, 32, 8192)}.items():
        stepper, _ = made_stepper(device, *(SMALL if small else shape))
        stepper.run(2)
        with torch.profiler.profile(activities=activities) as seen:
            stepper.run(5)
        Path("traces").mkdir(exist_ok=True)
        seen.export_chrome_trace(f"traces/{name}.json.gz")
        own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        averages = sorted(seen.key_averages(), key=lambda each: -getattr(each, own))
        for each in averages[:12]:
            found[f"{name}: {each.key[:60]}"] = getattr(each, own) / 5e3
    return found
