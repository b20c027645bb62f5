"""AuxK's codes by dense products over the dead latents, whose rows are gathered once.

By pairs, each of a row's aux_k codes gathers a row of weights: for its score, for the reconstruction, and for
the gradients of the code and of both weights. Where few latents are dead their codes are dense, and products
with all of them take less time; `pays` has the rule. The numbers are those of pairs, up to rounding.

How many latents are dead is not read on the host. Columns are as many as can be dead, which the ranks agreed
on earlier (`most_dead`); those beyond the dead ones have a score of -inf, and no code.

Letters: as core.types; U columns, of dead latents in ascending order; b rows of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.core.types import Codes
from sae_dist.kernels.products import products

TERMS = {"cpu": 3, "cuda": 25, "tf32": 150}
"""How many terms a dense product sums in the time in which pairs take one; `tf32` is a GPU too."""
TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Most scores at once."""

Found = tuple[Tensor, Tensor]


def pays(most_dead: int, aux_k: int, device: torch.device, tf32: bool) -> bool:
    """Return whether products over as many latents take less time than `aux_k` pairs in each row.

    The break-even is measured on a CPU; on a GPU it is a prediction from bytes and operations.
    """
    return most_dead < TERMS["tf32" if tf32 and device.type == "cuda" else device.type] * aux_k


@dataclass(frozen=True)
class DeadColumns:
    """The columns of the products: the dead latents of this shard, and some that stand for none.

    latent_U  their numbers, then 0
    dead_U    which columns are dead latents: the first ones
    """

    latent_U: Tensor
    dead_U: Tensor

    @staticmethod
    def of(dead_F: Tensor, most_dead: int) -> "DeadColumns":
        """Return the latents with `dead_F`, of which there are at most `most_dead`, without a host sync."""
        columns = min(most_dead, len(dead_F))
        place_F = torch.where(dead_F, dead_F.cumsum(0) - 1, columns)
        latent_F = torch.arange(len(dead_F), device=dead_F.device)
        latent_U = latent_F.new_zeros(columns + 1).scatter_(0, place_F, latent_F)[:columns]
        return DeadColumns(latent_U, torch.arange(columns, device=dead_F.device) < dead_F.sum())

    def candidates(self, x_BD: Tensor, W_FD: Tensor, b_F: Tensor, aux_k: int, kernels: ModuleType) -> Found:
        """Return each row's best scores x W^T + b and their columns, [B, K], K = aux_k or all there are."""
        W_UD, b_U = W_FD[self.latent_U], b_F[self.latent_U]
        found = []
        for rows in tiles(len(x_BD), len(b_U), x_BD.device):
            score_bU = torch.addmm(b_U, x_BD[rows], W_UD.T).masked_fill_(~self.dead_U, -torch.inf)
            found.append(kernels.topk_rows(score_bU, min(aux_k, len(b_U))))
        return torch.cat([val for val, _ in found]), torch.cat([idx for _, idx in found])


def reconstruct(
    x_BD: Tensor,
    W_enc_FD: Parameter,
    b_F: Parameter,
    centre_E: Parameter | None,
    W_dec_FE: Parameter,
    dead: DeadColumns,
    codes: Codes,
    tf32: bool = False,
) -> Tensor:
    """Return what this shard's selected dead latents reconstruct, [B, E], with all gradients but that of x.

    Args:
        centre_E: what has been subtracted from x; see `sparse.encode`.
        codes: columns of `dead`, and scores.
        tf32: see `products`.
    """
    out: Tensor = _Dense.apply(W_enc_FD, b_F, centre_E, W_dec_FE, x_BD, dead, codes, tf32)
    return out


class _Dense(torch.autograd.Function):
    """Both layers of AuxK: the codes of a tile of rows are made dense again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        W_enc_FD: Tensor,
        b_F: Tensor,
        centre_E: Tensor | None,
        W_dec_FE: Tensor,
        x_BD: Tensor,
        dead: DeadColumns,
        codes: Codes,
        tf32: bool,
    ) -> Tensor:
        ctx.save_for_backward(W_enc_FD, W_dec_FE, x_BD)
        ctx.dead, ctx.codes, ctx.tf32 = dead, codes, tf32
        W_UE = W_dec_FE[dead.latent_U]
        with products(tf32=tf32):
            return torch.cat([code_bU @ W_UE for _, code_bU in dense(codes, len(W_UE))])

    @staticmethod
    def backward(ctx: Any, grad_BE: Tensor) -> tuple[Tensor | None, ...]:
        W_enc_FD, W_dec_FE, x_BD = ctx.saved_tensors
        latent_U = ctx.dead.latent_U
        W_UE = W_dec_FE[latent_U]
        grad_enc_UD, grad_dec_UE = x_BD.new_zeros(len(W_UE), x_BD.shape[1]), torch.zeros_like(W_UE)
        grad_b_U = x_BD.new_zeros(len(W_UE))
        with products(tf32=ctx.tf32):
            for rows, code_bU in dense(ctx.codes, len(W_UE)):
                grad_bU = (grad_BE[rows] @ W_UE.T).masked_fill_(code_bU <= 0, 0.0)
                grad_dec_UE.addmm_(code_bU.T, grad_BE[rows])
                grad_enc_UD.addmm_(grad_bU.T, x_BD[rows])
                grad_b_U += grad_bU.sum(0)
        grad_centre = -(grad_b_U @ W_enc_FD[latent_U]) if ctx.needs_input_grad[2] else None
        # Columns that stand for no latent add 0 to latent 0.
        grad_enc_FD = torch.zeros_like(W_enc_FD).index_add_(0, latent_U, grad_enc_UD)
        grad_b_F = grad_enc_FD.new_zeros(len(W_enc_FD)).index_add_(0, latent_U, grad_b_U)
        grad_dec_FE = torch.zeros_like(W_dec_FE).index_add_(0, latent_U, grad_dec_UE)
        return grad_enc_FD, grad_b_F, grad_centre, grad_dec_FE, None, None, None, None


def dense(codes: Codes, columns: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield tiles of rows, and their codes in all columns, [b, U]: relu of the selected scores, else 0."""
    rows, slots = codes.val_BK.shape
    code_BK = codes.val_BK.relu()
    if codes.count_B is not None:
        slot_K = torch.arange(slots, device=code_BK.device)
        code_BK = code_BK.masked_fill_(slot_K >= codes.count_B[:, None], 0.0)
    for part in tiles(rows, columns, code_BK.device):
        code_bK = code_BK[part]
        yield part, code_bK.new_zeros(len(code_bK), columns).scatter_(1, codes.idx_BK[part], code_bK)


def tiles(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of rows, with no more scores in each than fit."""
    step = max(1, TILE_ELEMENTS[device.type] // max(columns, 1))
    for first in range(0, rows, step):
        yield slice(first, first + step)
