"""The sparse encoder and decoder, with gradients. Codes are (row, latent) pairs, sorted by row.

Letters: as core.types; L parts of the pairs, Q = P + 1.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.types import Codes, RowTerm

Terms = dict[str, list[RowTerm]] | None


@dataclass
class Pairs:
    """The used slots of `Codes`, flat: pair p is latent `latent_P[p]`, row b's first is `offsets_B[b]`."""

    latent_P: Tensor
    score_P: Tensor
    offsets_B: Tensor

    @staticmethod
    def of(codes: Codes) -> "Pairs":
        """Return the pairs of selected codes."""
        rows, slots = codes.idx_BK.shape
        device = codes.idx_BK.device
        if codes.count_B is None:
            offsets = torch.arange(0, rows * slots, slots, device=device)
            return Pairs(codes.idx_BK.reshape(-1), codes.val_BK.reshape(-1), offsets)
        used_BK = torch.arange(slots, device=device) < codes.count_B[:, None]
        # A mask as an index is read on the host each time; so it is made a list of places once.
        place_P = used_BK.flatten().nonzero().squeeze(1)
        offsets = codes.count_B.cumsum(0) - codes.count_B
        return Pairs(codes.idx_BK.flatten()[place_P], codes.val_BK.flatten()[place_P], offsets)

    def split(self, part_P: Tensor, parts: int) -> list[tuple[Tensor, "Pairs"]]:
        """Return for each part, 0 .. parts - 1, the positions of its pairs, ascending, and those pairs."""
        kept_LP = part_P == torch.arange(parts, device=part_P.device)[:, None]
        before_LQ = torch.nn.functional.pad(kept_LP.cumsum(1), (1, 0))
        places = part_P.argsort(stable=True).split(kept_LP.sum(1).tolist())
        return [
            (place_P, Pairs(self.latent_P[place_P], self.score_P[place_P], before_Q[self.offsets_B]))
            for place_P, before_Q in zip(places, before_LQ, strict=True)
        ]


def encode(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    centre_D: Tensor | None,
    pairs: Pairs,
    kernels: ModuleType,
    terms: Terms = None,
) -> Tensor:
    """Return the codes of selected pairs, [P]: relu(W[f] . x[b] + b[f]), with gradients for W, b and centre.

    `x_BD` is already centred. Its centre (b_dec) is an argument because its gradient goes through the encoder
    too: that full gradient lowers the FVU clearly. With `terms`, the gradients of W and b are appended to
    terms["W_enc"] instead of being summed.
    """
    return _Encode.apply(W_FD, b_F, centre_D, x_BD, pairs, kernels, terms).relu()


def decode(code_P: Tensor, W_FD: Tensor, pairs: Pairs, kernels: ModuleType, terms: Terms = None) -> Tensor:
    """Return the reconstruction from this shard's codes, [B, D], with gradients for the codes and W.

    With `terms`, the gradient of W is appended to terms["W_dec"] instead of being summed.
    """
    return _Decode.apply(code_P, W_FD, pairs, kernels, terms)


class _Encode(torch.autograd.Function):
    """The encoder: forward returns the scores that selection found, backward has sparse weight gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        W_FD: Tensor,
        b_F: Tensor,
        centre_D: Tensor | None,
        x_BD: Tensor,
        pairs: Pairs,
        kernels: ModuleType,
        terms: Terms,
    ) -> Tensor:
        ctx.save_for_backward(W_FD, x_BD)
        ctx.pairs, ctx.kernels, ctx.terms = pairs, kernels, terms
        return pairs.score_P.clone()

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        W_FD, x_BD = ctx.saved_tensors
        pairs, grad_P = ctx.pairs, grad_P.contiguous()
        grad_b = ctx.kernels.bias_gradient(pairs.latent_P, grad_P, len(W_FD))
        grad_centre = -(grad_b @ W_FD) if ctx.needs_input_grad[2] else None
        if ctx.terms is not None:
            ctx.terms["W_enc"].append(RowTerm(pairs.latent_P, grad_P, pairs.offsets_B, x_BD))
            return None, None, grad_centre, None, None, None, None
        grad_W_FD = ctx.kernels.weight_gradient(pairs.latent_P, grad_P, pairs.offsets_B, x_BD, len(W_FD))
        return grad_W_FD, grad_b, grad_centre, None, None, None, None


class _Decode(torch.autograd.Function):
    """The decoder: forward is a sparse-dense product, backward has gradients of codes and weights."""

    @staticmethod
    def forward(
        ctx: Any, code_P: Tensor, W_FD: Tensor, pairs: Pairs, kernels: ModuleType, terms: Terms
    ) -> Tensor:
        ctx.save_for_backward(code_P, W_FD)
        ctx.pairs, ctx.kernels, ctx.terms = pairs, kernels, terms
        return kernels.decode(pairs.latent_P, code_P, pairs.offsets_B, W_FD)

    @staticmethod
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        code_P, W_FD = ctx.saved_tensors
        pairs, kernels = ctx.pairs, ctx.kernels
        grad_BD = grad_BD.contiguous()
        grad_P = kernels.latent_gradient(pairs.latent_P, pairs.offsets_B, grad_BD, W_FD)
        if ctx.terms is not None:
            # Detached: codes hold their graph, and that holds `terms`; nothing would ever free the three.
            ctx.terms["W_dec"].append(RowTerm(pairs.latent_P, code_P.detach(), pairs.offsets_B, grad_BD))
            return grad_P, None, None, None, None
        grad_W_FD = kernels.weight_gradient(pairs.latent_P, code_P, pairs.offsets_B, grad_BD, len(W_FD))
        return grad_P, grad_W_FD, None, None, None
