"""Exact BatchTopK, with latents split over ranks and rows split over replicas.

The n = k * rows largest positive scores of the whole batch win. They are the scores above a threshold, which
the ranks find together by a radix search (`nth_largest`), and among the scores equal to it the first in the
order of (row of the batch, latent).

Not all scores are kept: each rank holds candidates, the best of its latents in each row. They suffice for a
row whose last candidate is below the threshold; the other rows are redone with twice as many candidates.

The radix search reads keys eight bits at a time from the top: a histogram of the next digit among the keys
that match the prefix found so far, summed over ranks, determines the next eight bits. It costs 2 KB per digit
and rank, for any number of keys, and no host sync.

Letters: as core.types; T shards and O rows of each; in the radix search N keys of this rank, R values of a
digit.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from sae_dist.core.types import Codes
from sae_dist.distributed.collectives import Axis
from sae_dist.distributed.mesh import Topology


@dataclass
class BatchCodes:
    """The selected codes, and the smallest selected score (0-d; 0 if too few scores are positive)."""

    codes: Codes
    threshold: Tensor


def slots_for(k: int, F: int, topology: Topology) -> int:
    """Return how many candidates per row a shard of `F` latents starts with."""
    return min(F, 2 * k // topology.num_shards + 8)


def select_batch(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    rows: int,
    topology: Topology,
    kernels: ModuleType,
    found: tuple[Tensor, Tensor] | None = None,
    redone: Tensor | None = None,
) -> BatchCodes:
    """Return the k * rows largest positive scores x W^T + b of the whole batch.

    Args:
        x_BD: rows of this replica, as gathered over the shard axis.
        rows: rows of the batch, over all replicas.
        found: the first candidates, values and latents [B, slots]; None: computed here.
        redone: rows that are scored again are added to it, also those that lacked candidates.
    """
    F = len(W_FD)
    slots = slots_for(k, F, topology)
    val_BK, idx_BK = found or kernels.encode_topk(x_BD, W_FD, b_F, slots, redone)
    order_B = row_of_batch(len(x_BD), topology, x_BD.device)
    num_latents = F * topology.num_shards
    while True:
        latent_BK = idx_BK + topology.shard.rank * F
        won_BK, threshold = winners(
            val_BK, order_B[:, None] * num_latents + latent_BK, k * rows, rows * num_latents, topology
        )
        # With a candidate to spare, none that was left out can have won.
        short_B = won_BK[:, -1] if slots < F else torch.zeros_like(won_BK[:, 0])
        if not topology.consumers.max(short_B.any().long()):
            return BatchCodes(Codes(idx_BK, val_BK, won_BK.sum(1)), threshold)
        if redone is not None:
            redone += short_B.sum()
        slots = min(F, 2 * slots)
        val_BK = torch.cat([val_BK, val_BK.new_full((len(val_BK), slots - val_BK.shape[1]), -torch.inf)], 1)
        idx_BK = torch.cat([idx_BK, idx_BK.new_zeros(len(idx_BK), slots - idx_BK.shape[1])], 1)
        val_BK[short_B], idx_BK[short_B] = kernels.encode_topk(x_BD[short_B], W_FD, b_F, slots)


def winners(
    val_BK: Tensor, place_BK: Tensor, wanted: int, places: int, topology: Topology
) -> tuple[Tensor, Tensor]:
    """Return which candidates are among the `wanted` largest of all ranks, and the smallest such score.

    Args:
        place_BK: position of a candidate in the order that breaks ties, 0 .. places - 1.
    """
    key_BK, bits = float_keys(val_BK)
    number = torch.full((), wanted, device=val_BK.device)
    key, ties = nth_largest(key_BK.flatten(), number, bits, topology.consumers)
    tied_BK = (key_BK == key) & (key > 0)
    early_BK = torch.where(tied_BK, places - place_BK, 0)
    last, _ = nth_largest(early_BK.flatten(), ties.clamp(min=1), places.bit_length(), topology.consumers)
    won_BK = (key_BK > key) | (tied_BK & (early_BK >= last))
    smallest = torch.where(won_BK, val_BK, torch.inf).amin()
    smallest = -topology.consumers.max(-smallest)
    return won_BK, torch.where(torch.isinf(smallest), 0.0, smallest)


def row_of_batch(rows: int, topology: Topology, device: torch.device) -> Tensor:
    """Return the batch's row numbers of a replica's rows, in their order after the gather over shards, [B].

    Consumer c drew rows c, c + C, c + 2 C, ... of the batch.
    """
    own = rows // topology.num_shards
    first = topology.index // topology.num_shards * topology.num_shards
    consumer_T = first + torch.arange(topology.num_shards, device=device)
    row_TO = consumer_T[:, None] + torch.arange(own, device=device) * topology.num_consumers
    return row_TO.flatten()


DIGIT_BITS = 8
RADIX = 1 << DIGIT_BITS


def nth_largest(key_N: Tensor, wanted: Tensor, bits: int, axis: Axis) -> tuple[Tensor, Tensor]:
    """Return the `wanted`-th largest key over all ranks of `axis`.

    Args:
        key_N: this rank's keys, int64, >= 0 and below 2**bits. Keys of 0 are ignored.
        wanted: 0-d int64, at least 1, equal on all ranks.
        bits: width of the keys; rounded up to whole digits.

    Returns:
        The key (0 if fewer than `wanted` keys are above 0), and how many of the keys equal to it belong to
        the `wanted` largest; 0-d int64 each.
    """
    found = torch.zeros((), dtype=torch.int64, device=key_N.device)
    missing = wanted.clone()
    for shift in range((bits - 1) // DIGIT_BITS * DIGIT_BITS, -1, -DIGIT_BITS):
        # No key of 63 bits is shifted by 64 or more: the digit above the top one is 0 for all.
        above_N = key_N >> shift >> DIGIT_BITS
        taking_part_N = ((above_N == found) & (key_N > 0)).long()
        digit_N = (key_N >> shift) & (RADIX - 1)
        count_R = torch.zeros(RADIX, dtype=torch.int64, device=key_N.device)
        count_R.index_add_(0, digit_N, taking_part_N)
        at_least_R = axis.sum(count_R).flip(0).cumsum(0).flip(0)
        digit = ((at_least_R >= missing).sum() - 1).clamp(min=0)
        # By index_select: an index that is a 0-d tensor is read on the host.
        here_or_above = torch.cat([at_least_R, at_least_R.new_zeros(1)])
        here, larger = here_or_above.index_select(0, torch.stack([digit, digit + 1])).unbind()
        enough = here >= missing
        missing = torch.where(enough, missing - larger, missing)
        found = (found << DIGIT_BITS) | torch.where(enough, digit, 0)
    return found, missing


def float_keys(value_N: Tensor) -> tuple[Tensor, int]:
    """Return integer keys that sort like the values, 0 for values not above zero, and their width in bits."""
    bits, view = (63, torch.int64) if value_N.dtype == torch.float64 else (31, torch.int32)
    positive_N = torch.where(value_N > 0, value_N, 0.0)
    plain_N = positive_N if bits == 63 else positive_N.float()
    return plain_N.contiguous().view(view).long(), bits
