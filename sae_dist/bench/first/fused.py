"""A first step on a GPU: is the product that filters its own scores right, and is it faster?

Letters: as core.types.
"""

import torch

from sae_dist.bench.first.right import ALLOWED, Found, error
from sae_dist.bench.first.speed import SHAPE
from sae_dist.bench.kernels import timed
from sae_dist.core.errors import NumericsError
from sae_dist.kernels.choose import choose_kernels

TILES = ((128, 128, 64), (256, 128, 64), (128, 256, 64))
"""Rows, latents and depth; the larger ones spill where dead latents are filtered, too."""


def fused(device: torch.device, small: bool) -> Found:
    """Select by both ways of the sweep, with and without dead latents: compare, then time.

    Raises:
        NumericsError: they select other latents.
    """
    if device.type != "cuda":
        return {"note": "both ways of the sweep are Triton's: nothing to time on a CPU"}
    from sae_dist.kernels import triton_plan, triton_select

    D, F, k, B = SHAPE
    made = torch.Generator(device).manual_seed(0)
    x, W = (torch.randn(rows, D, generator=made, device=device) for rows in (B, F))
    b, dead = 0.1 * torch.randn(F, generator=made, device=device), torch.arange(F, device=device) % 10 == 0
    kernels, found = choose_kernels("triton"), Found()
    way, tile = triton_select.FUSED, triton_plan.FUSED_TILE
    acts = {
        "all": lambda: kernels.encode_topk(x, W, b, k),
        "with_dead": lambda: sum(kernels.encode_topk_dead(x, W, b, k, dead, k), ()),
    }
    try:
        for name, act in acts.items():
            triton_select.FUSED, wanted = False, act()
            found[f"{name}_chunks_ms"] = 1e3 * timed(act, device)
            for size in TILES if name == "all" else TILES[:1]:
                triton_select.FUSED, triton_plan.FUSED_TILE = True, size
                check(act(), wanted)
                shown = "x".join(map(str, size))
                found[f"{name}_fused_{shown}_ms"] = 1e3 * timed(act, device)
                print(f"{name}, {shown}: {found[f'{name}_fused_{shown}_ms']:.2f} ms", flush=True)
    finally:
        triton_select.FUSED, triton_plan.FUSED_TILE = way, tile
    return found


def check(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> None:
    """Raise NumericsError if two selections differ: codes by rounding, latents at all."""
    for ours, others in zip(found, wanted, strict=True):
        if ours.dtype == torch.int64 and not torch.equal(ours, others):
            raise NumericsError(f"{int((ours != others).sum())} latents are others than by the chunks' way")
        if ours.is_floating_point() and not error(ours, others) <= ALLOWED:
            raise NumericsError(f"codes are off by {error(ours, others):.2g} of their norm")
