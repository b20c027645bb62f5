"""The kernels in torch operations, without any [B, F] tensor, for the CPU and for any device.

Functions and results are those of `reference`: selections exactly, sums up to rounding.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_dist.kernels import screen
from sae_dist.kernels.reference import pair_rows

ROW_TILE = 256
LATENT_TILE = 4096
GROUP = 8
FASTER = 6
"""How many terms a CPU's dense product sums in the time in which it gathers one."""


def topk_rows(scores_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` largest scores of each row; see `reference.topk_rows`.

    The k+1 best lie in the k+1 groups of latents with the largest maxima, so only those are searched. A
    group is every (F / GROUP)-th latent: maxima over whole rows of memory are several times faster than over
    neighbours. Rows with equal neighbours among the k+1 best are sorted stably, as ties could decide.
    """
    rows, F = scores_BF.shape
    wanted = min(k + 1, F)
    groups = F // GROUP
    if F % GROUP == 0 and wanted * 2 <= groups:
        group_idx = scores_BF.view(rows, GROUP, groups).amax(1).topk(wanted, dim=1, sorted=False).indices
        places = torch.arange(0, F, groups, device=scores_BF.device)
        member_idx = (group_idx[:, None, :] + places[:, None]).view(rows, -1)
        val, position = scores_BF.gather(1, member_idx).topk(wanted, dim=1)
        idx = member_idx.gather(1, position)
    else:
        val, idx = scores_BF.topk(wanted, dim=1)
    tied = (val[:, 1:] == val[:, :-1]).any(1)
    val, idx = val[:, :k], idx[:, :k]
    if tied.any():
        val_tied, idx_tied = scores_BF[tied].sort(dim=1, descending=True, stable=True)
        val[tied], idx[tied] = val_tied[:, :k], idx_tied[:, :k]
    return val, idx


def encode_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, redone: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the best latents of each row (`reference.encode_topk`), through `kernels.screen` if it pays."""
    if not screen.is_worth(x_BD, W_FD, k):
        return _encode_all(x_BD, W_FD, b_F, k)
    val = x_BD.new_empty(len(x_BD), k)
    idx = torch.empty(len(x_BD), k, dtype=torch.int64)
    rows = torch.arange(len(x_BD))
    few, more = screen.wanted(k, x_BD.shape[1])
    for count in (few, more):
        val[rows], idx[rows], certain = _encode_candidates(x_BD[rows], W_FD, b_F, k, count)
        rows = rows[~certain]
        if not len(rows):
            return val, idx
        if redone is not None and count == few:
            redone += len(rows)
    val[rows], idx[rows] = _encode_all(x_BD[rows], W_FD, b_F, k)
    return val, idx


def _encode_candidates(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best of each row's `count` candidates, and whether they are surely the best of all, [B]."""
    idx, left_out_B = screen.candidates(x_BD, W_FD, b_F, count)
    offsets_B = torch.arange(0, idx.numel(), count)
    score = latent_gradient(idx.view(-1), offsets_B, x_BD, W_FD).view(idx.shape) + b_F[idx]
    # Candidates stand in order of their index, so position order is index order among equals.
    val, position = topk_rows(score, k)
    # A score that is no number is above nothing.
    return val, idx.gather(1, position), val[:, -1] > left_out_B


def _encode_all(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the best latents from all scores, in the arguments' dtype, by tiles of rows and latents."""
    best_val = x_BD.new_empty(len(x_BD), k)
    best_idx = torch.empty(len(x_BD), k, dtype=torch.int64, device=x_BD.device)
    for first in range(0, len(W_FD), LATENT_TILE):
        W_tile, b_tile = W_FD[first : first + LATENT_TILE], b_F[first : first + LATENT_TILE]
        have = min(k, first)
        found = min(k, len(W_tile))
        for start in range(0, len(x_BD), ROW_TILE):
            rows = slice(start, start + ROW_TILE)
            val, idx = topk_rows(torch.addmm(b_tile, x_BD[rows], W_tile.T), found)
            idx = idx + first
            if have:
                # Candidates so far come first and have lower indices, so position order is index
                # order among equals.
                val = torch.cat([best_val[rows, :have], val], 1)
                idx = torch.cat([best_idx[rows, :have], idx], 1)
                val, position = topk_rows(val, min(k, have + found))
                idx = idx.gather(1, position)
            best_val[rows, : val.shape[1]], best_idx[rows, : val.shape[1]] = val, idx
    return best_val, best_idx


def encode_topk_dead(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dead_F: Tensor,
    dead_k: int,
    redone: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the best and the best dead latents (`reference.encode_topk_dead`), by two selections."""
    return encode_topk(x_BD, W_FD, b_F, k, redone), encode_topk_of(x_BD, W_FD, b_F, dead_F, dead_k, redone)


def encode_topk_of(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, mask_F: Tensor, k: int, redone: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the `k` best latents with `mask_F`; if there are fewer, values end in -inf, with index 0."""
    latents = mask_F.nonzero().squeeze(1)
    found = min(k, len(latents))
    val_BK = x_BD.new_full((len(x_BD), k), -torch.inf)
    idx_BK = torch.zeros(val_BK.shape, dtype=torch.int64, device=x_BD.device)
    if found:
        val, position = encode_topk(x_BD, W_FD[latents], b_F[latents], found, redone)
        val_BK[:, :found], idx_BK[:, :found] = val, latents[position]
    return val_BK, idx_BK


def decode(latent_P: Tensor, value_P: Tensor, offsets_B: Tensor, W_FD: Tensor) -> Tensor:
    """Return the reconstruction of each row; see `reference.decode`."""
    return embedding_bag(latent_P, W_FD, offsets_B, mode="sum", per_sample_weights=value_P)


def latent_gradient(latent_P: Tensor, offsets_B: Tensor, grad_BD: Tensor, W_FD: Tensor) -> Tensor:
    """Return the gradient of the codes; see `reference.latent_gradient`."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_BD, W_FD, latent_P, offsets_B, pair_rows(offsets_B, len(latent_P)), 0
    )


def weight_gradient(latent_P: Tensor, coeff_P: Tensor, offsets_B: Tensor, rows_BD: Tensor, F: int) -> Tensor:
    """Return the gradient of the weights (`reference.weight_gradient`), as one bag of rows per latent.

    On a CPU, pairs of few latents, as AuxK has when few are dead, become a dense product over those instead.
    """
    counts_F = torch.bincount(latent_P, minlength=F)
    if latent_P.device.type == "cpu" and rows_BD.element_size() >= 4:
        touched_F = counts_F > 0
        if int(touched_F.sum()) * len(offsets_B) < FASTER * len(latent_P):
            return _of_few(latent_P, coeff_P, offsets_B, rows_BD, touched_F)
    by_latent = order_by(latent_P, F)
    offsets_F = counts_F.cumsum(0) - counts_F
    row_P = pair_rows(offsets_B, len(latent_P))[by_latent]
    return embedding_bag(row_P, rows_BD, offsets_F, mode="sum", per_sample_weights=coeff_P[by_latent])


def _of_few(
    latent_P: Tensor, coeff_P: Tensor, offsets_B: Tensor, rows_BD: Tensor, touched_F: Tensor
) -> Tensor:
    """Return `weight_gradient` from a matrix [rows, U] of coefficients, U the touched latents, by tiles."""
    B, D = rows_BD.shape
    latent_U = touched_F.nonzero().squeeze(1)
    column_P = (touched_F.cumsum(0) - 1)[latent_P]
    row_P = pair_rows(offsets_B, len(latent_P))
    starts = [*offsets_B[::ROW_TILE].tolist(), len(latent_P)]
    grad_UD = rows_BD.new_zeros(len(latent_U), D)
    for number, first in enumerate(range(0, B, ROW_TILE)):
        rows_bD, pairs = rows_BD[first : first + ROW_TILE], slice(starts[number], starts[number + 1])
        place_P = (row_P[pairs] - first) * len(latent_U) + column_P[pairs]
        coeff_bU = coeff_P.new_zeros(len(rows_bD) * len(latent_U)).index_add_(0, place_P, coeff_P[pairs])
        grad_UD.addmm_(coeff_bU.view(len(rows_bD), -1).T, rows_bD)
    return rows_BD.new_zeros(len(touched_F), D).index_copy_(0, latent_U, grad_UD)


def order_by(latent_P: Tensor, F: int) -> Tensor:
    """Return the stable order of the pairs by latent; narrow integers are sorted much faster."""
    narrow = torch.int16 if F <= torch.iinfo(torch.int16).max else torch.int32
    return latent_P.to(narrow).sort(stable=True).indices


def bias_gradient(latent_P: Tensor, coeff_P: Tensor, F: int) -> Tensor:
    """Return the gradient of the bias; see `reference.bias_gradient`."""
    return coeff_P.new_zeros(F).index_add_(0, latent_P, coeff_P)
