"""The hosts of the sparse programs: sums and products over (row, latent) pairs, as in `reference`.

Rows and weights may be float32, bfloat16 or float64; sums are in float32 (for float64 in float64).

Letters: as core.types; N rows that pairs point to, S segments of pairs, W windows of pairs.
"""

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.kernels import triton_jit
from sae_dist.kernels.reference import pair_rows
from sae_dist.kernels.triton_plan import WINDOW, Plan, bag_plan, dots_plan, sums_plan, window_plan

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def decode(latent_P: Tensor, value_P: Tensor, offsets_B: Tensor, W_FD: Tensor) -> Tensor:
    """Return the reconstruction of each row; see `reference.decode`."""
    latent_P, value_P, offsets_B, W_FD = ready(latent_P, value_P, offsets_B, W_FD)
    plan = bag_plan(W_FD.shape[1], W_FD.dtype, windows=False)
    return run_bag(latent_P, value_P, offsets_B, W_FD, W_FD, plan)


def latent_gradient(latent_P: Tensor, offsets_B: Tensor, grad_BD: Tensor, W_FD: Tensor) -> Tensor:
    """Return the gradient of the codes; see `reference.latent_gradient`."""
    latent_P, offsets_B, grad_BD, W_FD = ready(latent_P, offsets_B, grad_BD, W_FD)
    plan = dots_plan(W_FD.shape[1], W_FD.dtype)
    out_P = torch.empty(len(latent_P), dtype=summed(W_FD.dtype), device=W_FD.device)
    if len(latent_P):
        triton_jit.dots[(len(offsets_B),)](
            latent_P, offsets_B, grad_BD, W_FD, out_P, len(latent_P), len(offsets_B), **plan.options
        )
    return out_P


def weight_gradient(latent_P: Tensor, coeff_P: Tensor, offsets_B: Tensor, rows_BD: Tensor, F: int) -> Tensor:
    """Return the gradient of the weights (`reference.weight_gradient`); frequent latents go by windows."""
    latent_P, coeff_P, offsets_B, rows_BD = ready(latent_P, coeff_P, offsets_B, rows_BD)
    latent_P, order_P = latent_P.sort(stable=True)
    row_P = pair_rows(offsets_B, len(latent_P))[order_P]
    coeff_P = coeff_P[order_P]
    start_F = torch.searchsorted(latent_P, torch.arange(F, device=latent_P.device))
    partial_WD = run_windows(latent_P, row_P, coeff_P, rows_BD)
    plan = bag_plan(rows_BD.shape[1], rows_BD.dtype, windows=True)
    return run_bag(row_P, coeff_P, start_F, rows_BD, partial_WD, plan)


def bias_gradient(latent_P: Tensor, coeff_P: Tensor, F: int) -> Tensor:
    """Return the gradient of the bias (`reference.bias_gradient`); sorting makes sums deterministic."""
    latent_P, coeff_P = ready(latent_P, coeff_P)
    latent_P, order_P = latent_P.sort(stable=True)
    start_F = torch.searchsorted(latent_P, torch.arange(F, device=latent_P.device))
    out_F = torch.empty(F, dtype=summed(coeff_P.dtype), device=coeff_P.device)
    plan = sums_plan(coeff_P.dtype)
    triton_jit.segment_sums[(F,)](coeff_P[order_P], start_F, out_F, len(latent_P), F, **plan.options)
    return out_F


def run_bag(
    index_P: Tensor, coeff_P: Tensor, start_S: Tensor, rows_ND: Tensor, partial_WD: Tensor, plan: Plan
) -> Tensor:
    """Return weighted sums of rows per segment, [S, D]."""
    segments, D = len(start_S), rows_ND.shape[1]
    out_SD = torch.empty(segments, D, dtype=summed(rows_ND.dtype), device=rows_ND.device)
    if out_SD.numel():
        triton_jit.bag[grid(segments, D, plan)](
            index_P, coeff_P, start_S, rows_ND, partial_WD, out_SD, len(index_P), segments, **plan.options
        )
    return out_SD


def run_windows(key_P: Tensor, index_P: Tensor, coeff_P: Tensor, rows_ND: Tensor, parity: int = -1) -> Tensor:
    """Return the sums of windows of sorted pairs that have one key; other windows are not written."""
    D, windows = rows_ND.shape[1], len(key_P) // WINDOW
    partial_WD = torch.empty(max(windows, 1), D, dtype=summed(rows_ND.dtype), device=rows_ND.device)
    if windows:
        plan = window_plan(D, rows_ND.dtype, parity)
        triton_jit.window_sums[grid(windows, D, plan)](
            key_P, index_P, coeff_P, rows_ND, partial_WD, len(key_P), **plan.options
        )
    return partial_WD


def grid(segments: int, D: int, plan: Plan) -> tuple[int, int]:
    """Return the number of programs: one per segment and tile of columns."""
    block = plan.constants["BLOCK"]
    assert isinstance(block, int)
    return segments, -(-D // block)


def summed(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over rows of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ready(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors, made contiguous.

    Raises:
        ConfigError: they are on different devices, or have a dtype that these programs do not support.
    """
    for tensor in tensors:
        if tensor.device != tensors[0].device:
            raise ConfigError(
                f"kernels=triton got tensors on {tensors[0].device} and {tensor.device}; use one device"
            )
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ConfigError(f"kernels=triton does not know {tensor.dtype}; use {known}, or kernels=torch")
    return tuple(tensor.contiguous() for tensor in tensors)
