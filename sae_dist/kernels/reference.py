"""The definition of every kernel in plain torch: dense, obviously right, slow.

Faster backends are tested against this file, in fp64 where they can.

Letters: as core.types.
"""

import torch
from torch import Tensor


def topk_rows(scores_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` largest scores of each row, sorted by value descending, ties by lower index.

    Returns:
        values [B, k] and indices [B, k] (int64).
    """
    val_BF, idx_BF = scores_BF.sort(dim=1, descending=True, stable=True)
    return val_BF[:, :k], idx_BF[:, :k]


def encode_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, redone: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return `topk_rows(x W^T + b, k)`, the best latents of each row.

    Args:
        redone: a number on the device; rows that had to be scored more than once are added to it. Here and
            in other backends without a first guess there are none.
    """
    return topk_rows(x_BD @ W_FD.T + b_F, k)


def encode_topk_dead(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dead_F: Tensor,
    dead_k: int,
    redone: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return `encode_topk`, and the same for the `dead_k` best latents with `dead_F` (AuxK's selection).

    If fewer than `dead_k` are dead, the second values end in -inf, with index 0.
    """
    scores_BF = x_BD @ W_FD.T + b_F
    val, idx = topk_rows(scores_BF.masked_fill(~dead_F, -torch.inf), dead_k)
    missing = torch.arange(dead_k, device=idx.device) >= dead_F.sum()
    return topk_rows(scores_BF, k), (val, idx.masked_fill(missing, 0))


def decode(latent_P: Tensor, value_P: Tensor, offsets_B: Tensor, W_FD: Tensor) -> Tensor:
    """Return y [B, D]: y[b] = sum over the pairs p of row b of value[p] * W[latent[p]].

    Pairs are sorted by row; `offsets_B` [B] holds the first pair of each row.
    """
    codes_BF = value_P.new_zeros(len(offsets_B), len(W_FD))
    codes_BF.index_put_((pair_rows(offsets_B, len(latent_P)), latent_P), value_P, accumulate=True)
    return codes_BF @ W_FD


def latent_gradient(latent_P: Tensor, offsets_B: Tensor, grad_BD: Tensor, W_FD: Tensor) -> Tensor:
    """Return the gradient of `decode` for its values, [P]: d value[p] = <W[latent[p]], grad[row of p]>."""
    return (W_FD[latent_P] * grad_BD[pair_rows(offsets_B, len(latent_P))]).sum(1)


def weight_gradient(latent_P: Tensor, coeff_P: Tensor, offsets_B: Tensor, rows_BD: Tensor, F: int) -> Tensor:
    """Return dW [F, D]: dW[f] = sum over pairs p with latent f of coeff[p] * rows[row of p]."""
    grad_FD = rows_BD.new_zeros(F, rows_BD.shape[1])
    return grad_FD.index_add_(0, latent_P, coeff_P[:, None] * rows_BD[pair_rows(offsets_B, len(latent_P))])


def bias_gradient(latent_P: Tensor, coeff_P: Tensor, F: int) -> Tensor:
    """Return db [F]: db[f] = sum over pairs p with latent f of coeff[p]."""
    return coeff_P.new_zeros(F).index_add_(0, latent_P, coeff_P)


def pair_rows(offsets_B: Tensor, num_pairs: int) -> Tensor:
    """Return the row of each pair, [P]."""
    counts = torch.diff(offsets_B, append=offsets_B.new_full((1,), num_pairs))
    return torch.repeat_interleave(counts, output_size=num_pairs)
