"""Exact TopK over latents that are split over ranks; the owner of a row merges its candidates.

Every shard rank holds, for all rows of its replica, its local candidates: the k best of its own
latents. Row b belongs to rank b // (B / T). Candidates travel to the owner of their row (all-to-all),
the owner finds the k winners and answers each rank with one number per row: how many of its
candidates win. Candidates are sorted, so the winners are a prefix. A rank receives 4 k bytes of
values per row it owns and shard, and 2 bytes per row of answers: 4 k + O(1) bytes per token.

Ties: among equal scores the lower global latent wins. Shards hold contiguous ranges of latents, so
the order (shard, local order) is the global order, and the result equals one `topk` over all latents.
"""

from types import ModuleType

import torch
from torch import Tensor

from sae_dist.core.types import Codes
from sae_dist.distributed.collectives import Axis


def select(
    val_BK: Tensor, idx_BK: Tensor, k: int, shard: Axis, kernels: ModuleType, *, padded: bool = False
) -> Codes:
    """Keep the candidates that are among the `k` best of their row over all shards.

    Args:
        val_BK: candidates' scores, sorted (value descending, latent ascending), at most k per row.
        idx_BK: their latents within this shard.
        k: codes per row.
        padded: a rank with fewer candidates than others has padded with -inf, which never wins.

    Returns:
        The same slots with `count_B`, the number of winners in each row.
    """
    if shard.size == 1:
        return Codes(idx_BK, val_BK, (~torch.isneginf(val_BK)).sum(1) if padded else None)
    rows, slots = val_BK.shape
    own = rows // shard.size
    received = shard.exchange_rows(val_BK.view(shard.size * own, slots))
    pooled = received.view(shard.size, own, slots).transpose(0, 1).reshape(own, shard.size * slots)
    val, position = kernels.topk_rows(pooled, min(k, pooled.shape[1]))
    winner_of = torch.where(torch.isneginf(val), shard.size, position // slots)
    won = torch.zeros(own, shard.size + 1, dtype=torch.int64, device=val.device)
    won.scatter_add_(1, winner_of, torch.ones_like(winner_of))
    answers = shard.exchange_rows(won[:, : shard.size].t().contiguous().view(-1).to(torch.int16))
    return Codes(idx_BK, val_BK, answers.long())
