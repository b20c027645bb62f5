"""First steps on a GPU: is it right? Each function returns what it found, by name.

Letters: as core.types.
"""

import importlib.metadata
import os
import platform
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from sae_dist.bench.kernels import copy_rate, product_rate
from sae_dist.bench.peers.step_io import draw
from sae_dist.bench.step.ours import Ours
from sae_dist.config.triton import triton_problem
from sae_dist.core.errors import NumericsError
from sae_dist.kernels import reference
from sae_dist.kernels.choose import choose_kernels

Found = dict[str, float | str]
LIBRARIES = ("torch", "triton", "transformers", "numpy", "hydra-core", "omegaconf")
STEPS = 10
ALLOWED = 1e-4
"""The largest error of a kernel, as a share of the result's norm: sums in float32 are far below it."""


def env(device: torch.device, small: bool) -> Found:
    """Name the machine and its libraries, and measure a large copy and a large product."""
    found: Found = {"python": platform.python_version(), "cores": os.cpu_count() or 0}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    found["triton_problem"] = triton_problem() or "none"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
        found |= {"gpu_gb": total / 1e9, "free_gb": free / 1e9, "cuda": str(torch.version.cuda)}
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    found["copy_gb_s"] = copy_rate(device) / 1e9
    found["product_tflops"] = product_rate(device) / 1e12
    return found


def kernels(device: torch.device, small: bool) -> Found:
    """Run every kernel once, and compare it with the reference in float64 on the same device.

    Raises:
        NumericsError: one of them differs by more than rounding, or is not finite.
    """
    B, D, F, k = (128, 64, 4096, 8) if small else (1024, 768, 16384, 32)
    ours = choose_kernels("triton" if device.type == "cuda" else "torch")
    made = torch.Generator(device).manual_seed(0)
    x, grad, W = (torch.randn(rows, D, generator=made, device=device) for rows in (B, B, F))
    b = 0.1 * torch.randn(F, generator=made, device=device)
    value_BK, latent_BK = ours.encode_topk(x, W, b, k)
    exact_BK, _ = reference.encode_topk(x.double(), W.double(), b.double(), k)
    again_BK = (x.double()[:, None] * W.double()[latent_BK]).sum(2) + b.double()[latent_BK]
    latent, value = latent_BK.flatten(), value_BK.flatten()
    first = torch.arange(0, B * k, k, device=device)
    wide = value.double()
    errors = {
        "codes": error(value_BK, again_BK),
        "selection": error(again_BK.sort(1).values, exact_BK.sort(1).values),
        "decode": error(
            ours.decode(latent, value, first, W), reference.decode(latent, wide, first, W.double())
        ),
        "latent_gradient": error(
            ours.latent_gradient(latent, first, grad, W),
            reference.latent_gradient(latent, first, grad.double(), W.double()),
        ),
        "weight_gradient": error(
            ours.weight_gradient(latent, value, first, x, F),
            reference.weight_gradient(latent, wide, first, x.double(), F),
        ),
        "bias_gradient": error(
            ours.bias_gradient(latent, value, F), reference.bias_gradient(latent, wide, F)
        ),
    }
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= ALLOWED:
        raise NumericsError(f"{worst} is off by {errors[worst]:.2g} of its norm; {ALLOWED:g} are allowed")
    return {"backend": ours.__name__.rsplit(".", 1)[-1], "largest_error": errors[worst], **errors}


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of a difference, as a share of the norm of what is right; NaN stays NaN."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def waits(device: torch.device, small: bool) -> Found:
    """Count where a step makes the host wait for the GPU, by file and line; on a CPU nothing waits."""
    stepper, _ = made_stepper(device, *((64, 4096, 8) if small else (768, 16384, 32)))
    stepper.run(2)
    if device.type != "cuda":
        return {"waits_per_step": 0.0, "note": "no GPU: nothing to wait for"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            stepper.run(STEPS)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where = Counter(f"{each.filename.rsplit('sae_dist/', 1)[-1]}:{each.lineno}" for each in caught)
    return {"waits_per_step": len(caught) / STEPS, **{name: float(n) for name, n in where.most_common(20)}}


def group(device: torch.device, small: bool) -> Found:
    """Use the collectives of a run in a group of one rank, and end it: does their library load?"""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        for name, act in collectives(device):
            act()
            if device.type == "cuda":
                torch.cuda.synchronize()
            print(f"{name}: done", flush=True)
    finally:
        dist.destroy_process_group()
    return {"backend": backend, "collectives": len(list(collectives(device)))}


def collectives(device: torch.device) -> Iterator[tuple[str, partial[object]]]:
    """Yield the collectives of a run, with the dtypes that it gives them."""
    largest = torch.arange(8, device=device)
    rows, parts = torch.randn(8, 4, device=device), [torch.empty(8, 4, device=device)]
    yield "all_reduce MAX int64", partial(dist.all_reduce, largest, dist.ReduceOp.MAX)
    yield "all_reduce SUM", partial(dist.all_reduce, rows)
    yield "broadcast", partial(dist.broadcast, rows, 0)
    yield "all_gather", partial(dist.all_gather, parts, rows)
    if device.type == "cuda":
        counted = torch.zeros(8, dtype=torch.uint8, device=device)
        yield "all_to_all_single uint8", partial(dist.all_to_all_single, torch.empty_like(counted), counted)
        yield "reduce_scatter", partial(dist.reduce_scatter_tensor, torch.empty_like(rows), rows)
        yield "all_gather_into_tensor", partial(dist.all_gather_into_tensor, torch.empty_like(rows), rows)


def made_stepper(
    device: torch.device, width: int, latents: int, k: int, batch: int = 1024, words: tuple[str, ...] = ()
) -> tuple[Ours, Tensor]:
    """Return our training step on random rows, and the rows; no step of it writes metrics."""
    ask = {"width": width, "latents": latents, "k": k, "batch": batch, "dead_share": 0.0}
    problem = draw(ask, device)
    return Ours(problem, ["metrics.every=1000000", *words]), problem.x_BD
