"""The TopK of CPUs that multiply bfloat16: upper bounds of all scores pick candidates, float32 decides.

The bound is one bfloat16 product. Three columns besides the D of the activation carry the bias, in two parts,
and the most that rounding can take away:

    u = x16 . w16 + b + c |x| |w|  >=  x . w + b,   c = 2^-8 and what sums of D float32 terms lose

The latents with the largest bounds are scored in float32. If the k-th best of those scores is above every
bound that was left out, the selection is that of float32. Other rows are redone with more candidates, and
then in full if that is still not enough.

Letters: as core.types; C = D + 3 columns of a bound.
"""

import math

import torch
from torch import Tensor

ROW_TILE = 256
LATENT_TILE = 32768
GROUP = 8
PAD = 32
"""Widths are padded to a multiple of it, with which oneDNN's kernels are fastest."""
FEWEST = 4096
"""Number of latents below which the float32 product is as fast."""
NEVER = -3e38
"""The bound of latents that only pad a tile."""


def is_worth(x_BD: Tensor, W_FD: Tensor, k: int) -> bool:
    """Return whether this CPU multiplies bfloat16 natively, and k is small against the number of latents."""
    return (
        x_BD.device.type == "cpu"
        and x_BD.dtype == W_FD.dtype == torch.float32
        and len(W_FD) >= FEWEST
        and len(W_FD) > 64 * k
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def wanted(k: int, D: int) -> tuple[int, int]:
    """Return how many candidates to try first, and how many for rows where those are too few.

    Rounding widens a bound by 2^-8 |x| |w|, which is sqrt(D) / 256 of a score's spread. So the number of
    latents within that distance of the k-th best grows with sqrt(D).
    """
    more = 16 + math.ceil(k * D**0.5 / 40)
    return k + more, k + 4 * more


def candidates(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the `count` latents of each row with the largest bounds.

    Returns:
        latents [B, count], ascending, and a bound that no other latent's score exceeds, [B].
    """
    ready_BC = widen(x_BD, torch.linalg.vector_norm(x_BD, dim=1))
    best_val = ready_BC.new_empty(len(x_BD), count)
    best_idx = torch.empty(len(x_BD), count, dtype=torch.int64)
    # Tiles of about one size: each holds `count` latents, even the last.
    size = -(-len(W_FD) // -(-len(W_FD) // LATENT_TILE))
    for first in range(0, len(W_FD), size):
        tile = slice(first, first + size)
        W_fC = bounds_of(W_FD[tile], b_F[tile])
        for start in range(0, len(x_BD), ROW_TILE):
            rows = slice(start, start + ROW_TILE)
            val, idx = largest(ready_BC[rows] @ W_fC.T, count)
            idx += first
            if first:
                val, position = torch.cat([best_val[rows], val], 1).topk(count, dim=1, sorted=False)
                idx = torch.cat([best_idx[rows], idx], 1).gather(1, position)
            best_val[rows], best_idx[rows] = val, idx
    # Where bounds are NaN even padding may have won; such rows are redone.
    best_idx.clamp_(max=len(W_FD) - 1)
    left_out_B = best_val.amin(1).float()
    # The product was rounded to bfloat16 on its way out.
    return best_idx.sort(dim=1).values, left_out_B + left_out_B.abs() * 2**-8


def widen(x_BD: Tensor, norm_B: Tensor) -> Tensor:
    """Return rows in bfloat16, and three columns that multiply the parts of the bias and rounding, [B, C]."""
    rows, D = x_BD.shape
    ready_BC = torch.zeros(rows, width(D), dtype=torch.bfloat16)
    ready_BC[:, :D] = x_BD
    ready_BC[:, D : D + 2] = 1
    ready_BC[:, D + 2] = above(norm_B)
    return ready_BC


def bounds_of(W_fD: Tensor, b_f: Tensor) -> Tensor:
    """Return latents in bfloat16 with the columns of `widen`, padded to a multiple of GROUP."""
    latents, D = W_fD.shape
    lost = 2**-8 + 2**-17 + 4 * (D + 3) * 2**-23
    bound_fC = torch.zeros(-(-latents // GROUP) * GROUP, width(D), dtype=torch.bfloat16)
    bound_fC[:latents, :D] = W_fD
    coarse_f = b_f.bfloat16()
    bound_fC[:latents, D] = coarse_f
    bound_fC[latents:, D] = NEVER
    rest_f = b_f - coarse_f.float()
    bound_fC[:latents, D + 1] = above(rest_f + 4 * (D + 3) * 2**-23 * b_f.abs())
    bound_fC[:latents, D + 2] = above(lost * torch.linalg.vector_norm(W_fD, dim=1))
    return bound_fC


def width(D: int) -> int:
    """Return how many columns the product has."""
    return -(-(D + 3) // PAD) * PAD


def above(value: Tensor) -> Tensor:
    """Return bfloat16 values that are not less."""
    return (value + value.abs() * 2**-7).bfloat16()


def largest(bound_Bf: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of each row and their positions, in any order.

    They are in the groups with the largest maxima. A group is every (f / GROUP)-th column: maxima over
    whole rows of memory are several times faster than over neighbours.
    """
    rows, f = bound_Bf.shape
    groups = f // GROUP
    if count > groups:
        return bound_Bf.topk(count, dim=1, sorted=False)
    grouped = bound_Bf.view(rows, GROUP, groups)
    group_idx = grouped.amax(1).topk(count, dim=1, sorted=False).indices
    idx = (group_idx[:, None, :] + torch.arange(GROUP)[:, None] * groups).view(rows, -1)
    val, position = bound_Bf.gather(1, idx).topk(count, dim=1, sorted=False)
    return val, idx.gather(1, position)
