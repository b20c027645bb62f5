"""Selection by sort keys: int64 numbers that order by score, then by lower latent, so that no two are equal.

The best of a row then follow from one `topk`, ties included, and nothing is read on the host.

Letters: as core.types; n rows that are selected from in full.
"""

import torch
from torch import Tensor

from sae_dist.kernels import reference

EMPTY = -(2**63)
LOW = 2**31 - 1
FULL_SCORES = 2**24
"""Scores in memory at once where a selection is made in full: 4 bytes each, and 8 of the key."""
FULL_ROWS = 1024
"""Most rows in one product of such a selection."""

Found = tuple[Tensor, Tensor]


def sort_keys(score: Tensor, latent: Tensor) -> Tensor:
    """Return the keys of `triton_jit.sort_key`, also for bfloat16 scores."""
    score = score.float()
    bits = torch.where(score == 0, 0.0, score).view(torch.int32)
    bits = torch.where(score.isnan(), 0x7FC00000, bits)
    ordered = torch.where(bits < 0, bits ^ LOW, bits)
    return (ordered.long() << 32) | (LOW - latent)


def scores_of(key: Tensor) -> Tensor:
    """Return the scores from which sort keys were made."""
    ordered = (key >> 32).int()
    return torch.where(ordered < 0, ordered ^ LOW, ordered).view(torch.float32)


def latents_of(key: Tensor) -> Tensor:
    """Return the latents from which sort keys were made."""
    return LOW - (key & LOW)


def topk_rows(scores_BF: Tensor, k: int) -> Found:
    """Return the `k` largest scores of each row (`reference.topk_rows`), by keys of value and index."""
    if scores_BF.dtype == torch.float64:
        return reference.topk_rows(scores_BF, k)
    idx_F = torch.arange(scores_BF.shape[1], device=scores_BF.device)
    idx = latents_of(sort_keys(scores_BF, idx_F).topk(k, dim=1).values)
    return scores_BF.gather(1, idx), idx


def select_in_full(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, mask_F: Tensor | None) -> Found:
    """Return the best latents from scores in float32, by products as large as `FULL_SCORES` allows.

    Args:
        mask_F: the latents to select from; None: all. If there are fewer than k, values end in -inf, with
            index 0.
    """
    x_BD = x_BD.float()
    best = [_best(x_bD, W_FD, b_F, k, mask_F) for x_bD in x_BD.split(FULL_ROWS)]
    key_BK = torch.cat(best) if best else torch.empty(0, k, dtype=torch.int64, device=x_BD.device)
    found_BK = key_BK != EMPTY
    val_BK = torch.where(found_BK, scores_of(key_BK), -torch.inf)
    return val_BK, torch.where(found_BK, latents_of(key_BK), 0)


def _best(x_nD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, mask_F: Tensor | None) -> Tensor:
    """Return the k largest keys of some rows, descending; EMPTY where there are too few latents."""
    best_nK = torch.full((len(x_nD), k), EMPTY, device=x_nD.device)
    step = max(FULL_SCORES // max(len(x_nD), 1), 1)
    for first in range(0, len(W_FD), step):
        part = slice(first, first + step)
        W_fD, b_f = W_FD[part].float(), b_F[part].float()
        key_nf = sort_keys(
            torch.addmm(b_f, x_nD, W_fD.T), torch.arange(first, first + len(W_fD), device=x_nD.device)
        )
        if mask_F is not None:
            key_nf = key_nf.masked_fill(~mask_F[part], EMPTY)
        best_nK = torch.cat([best_nK, key_nf], 1).topk(k, dim=1).values
    return best_nK
