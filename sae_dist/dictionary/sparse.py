"""Sparse encode and decode with gradients. Codes are (row, latent) pairs, sorted by row.

Letters: B rows, D width, F latents of this shard, P pairs.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.types import Codes


@dataclass
class Pairs:
    """The used slots of `Codes`, flat: pair p is latent `latent_P[p]`, row b's first is `offsets_B[b]`."""

    latent_P: Tensor
    score_P: Tensor
    offsets_B: Tensor

    @staticmethod
    def of(codes: Codes) -> "Pairs":
        rows, slots = codes.idx_BK.shape
        device = codes.idx_BK.device
        if codes.count_B is None:
            offsets = torch.arange(0, rows * slots, slots, device=device)
            return Pairs(codes.idx_BK.reshape(-1), codes.val_BK.reshape(-1), offsets)
        used_BK = torch.arange(slots, device=device) < codes.count_B[:, None]
        offsets = codes.count_B.cumsum(0) - codes.count_B
        return Pairs(codes.idx_BK[used_BK], codes.val_BK[used_BK], offsets)


def encode(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, b_dec_D: Tensor, pairs: Pairs, kernels: ModuleType
) -> Tensor:
    """Codes of the selected pairs, [P]: relu(W[f] . x[b] + b[f]), with gradients for W, b and b_dec.

    `x_BD` is already centred: x - b_dec. Its gradient with respect to b_dec goes through the encoder,
    which is why b_dec is an argument; the full gradient is worth a good part of the FVU (DESIGN 4.4).
    """
    return _Encode.apply(W_FD, b_F, b_dec_D, x_BD, pairs, kernels).relu()


def decode(code_P: Tensor, W_FD: Tensor, pairs: Pairs, kernels: ModuleType) -> Tensor:
    """Reconstruction from this shard's codes, [B, D], with gradients for the codes and W."""
    return _Decode.apply(code_P, W_FD, pairs, kernels)


class _Encode(torch.autograd.Function):
    """The scores found by the selection forward; sparse weight gradients backward."""

    @staticmethod
    def forward(
        ctx: Any, W_FD: Tensor, b_F: Tensor, b_dec_D: Tensor, x_BD: Tensor, pairs: Pairs, kernels: ModuleType
    ) -> Tensor:
        ctx.save_for_backward(W_FD, x_BD)
        ctx.pairs, ctx.kernels = pairs, kernels
        return pairs.score_P.clone()

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        W_FD, x_BD = ctx.saved_tensors
        pairs = ctx.pairs
        grad_P = grad_P.contiguous()
        grad_W = ctx.kernels.weight_gradient(pairs.latent_P, grad_P, pairs.offsets_B, x_BD, len(W_FD))
        grad_b = grad_P.new_zeros(len(W_FD)).index_add_(0, pairs.latent_P, grad_P)
        return grad_W, grad_b, -(grad_b @ W_FD), None, None, None


class _Decode(torch.autograd.Function):
    """Sparse-dense product forward; latent and weight gradients backward."""

    @staticmethod
    def forward(ctx: Any, code_P: Tensor, W_FD: Tensor, pairs: Pairs, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(code_P, W_FD)
        ctx.pairs, ctx.kernels = pairs, kernels
        return kernels.decode(pairs.latent_P, code_P, pairs.offsets_B, W_FD)

    @staticmethod
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        code_P, W_FD = ctx.saved_tensors
        pairs, kernels = ctx.pairs, ctx.kernels
        grad_BD = grad_BD.contiguous()
        grad_P = kernels.latent_gradient(pairs.latent_P, pairs.offsets_B, grad_BD, W_FD)
        grad_W = kernels.weight_gradient(pairs.latent_P, code_P, pairs.offsets_B, grad_BD, len(W_FD))
        return grad_P, grad_W, None, None
