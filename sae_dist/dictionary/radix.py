"""The n-th largest of integer keys that are spread over ranks, exactly, by counting digits.

Eight bits at a time from the top: a histogram of the next digit among the keys that match the prefix found so
far, summed over ranks, fixes the next eight bits. 2 KB per digit and rank, whatever the number of keys, and
nothing is read on the host.
"""

import torch
from torch import Tensor

from sae_dist.dist.collectives import Axis

DIGIT_BITS = 8
RADIX = 1 << DIGIT_BITS


def nth_largest(key_N: Tensor, wanted: Tensor, bits: int, axis: Axis) -> tuple[Tensor, Tensor]:
    """The `wanted`-th largest key over all ranks of `axis`.

    Args:
        key_N: this rank's keys, int64, >= 0 and below 2**bits. Keys of 0 do not take part.
        wanted: 0-d int64, at least 1, equal on all ranks.
        bits: bits that a key may have; rounded up to whole digits.

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
    """Keys in the order of the values, and their bits; 0 for values that are not above zero."""
    bits, view = (63, torch.int64) if value_N.dtype == torch.float64 else (31, torch.int32)
    positive_N = torch.where(value_N > 0, value_N, 0.0)
    plain_N = positive_N if bits == 63 else positive_N.float()
    return plain_N.contiguous().view(view).long(), bits
