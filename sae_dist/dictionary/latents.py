"""What is a function of a latent's index, and when each latent last fired.

Initial weights are functions of (seed, global latent index), so they do not depend on sharding (I8). Levels
of Matryoshka dictionaries, which prefix a latent belongs to, are a function of the storage index alone and
lie evenly spread over it, so that every shard holds its share of every prefix. Exports sort latents by level,
which makes prefixes of them. Dead latents are those that have not fired for `sae.dead_after` tokens, over all
replicas.
"""

import torch
from torch import Tensor

from sae_dist.distributed.collectives import Axis

BLOCK = 256
"""Latents per random generator: a shard draws the blocks it overlaps and slices."""


def unit_rows(seed: int, first: int, last: int, width: int, stream: int = 0) -> Tensor:
    """Rows `first` .. `last` of an initial matrix: Gaussian directions of unit norm, fp64 [n, width].

    `stream` tells independent matrices of one seed apart.
    """
    drawn = []
    for block in range(first // BLOCK, (last + BLOCK - 1) // BLOCK):
        generator = torch.Generator().manual_seed((seed + stream * 2**33) * 1_000_003 + block)
        rows = torch.randn(BLOCK, width, dtype=torch.float64, generator=generator)
        start = block * BLOCK
        drawn.append(rows[max(first - start, 0) : last - start])
    rows_FD = torch.cat(drawn)
    return rows_FD / rows_FD.norm(dim=1, keepdim=True)


GOLDEN = 0.6180339887498949
"""Multiples of it modulo 1 are evenly spread, however many are taken."""


def prefix_sizes(num_latents: int, prefixes: list[float]) -> list[int]:
    """Latents in each nested prefix, from cumulative fractions; the last is all of them."""
    return [max(1, round(fraction * num_latents)) for fraction in prefixes[:-1]] + [num_latents]


def levels(num_latents: int, prefixes: list[float]) -> Tensor:
    """Level of each latent, by storage index: 0 for the smallest prefix. int64 [num_latents]."""
    place = (torch.arange(num_latents, dtype=torch.float64) * GOLDEN % 1).argsort(stable=True)
    found = torch.empty(num_latents, dtype=torch.int64)
    bounds = torch.tensor(prefix_sizes(num_latents, prefixes))
    found[place] = torch.bucketize(torch.arange(num_latents), bounds, right=True)
    return found


class DeadLatents:
    """When each latent of this shard last fired, in tokens seen by the whole run."""

    def __init__(self, num_latents: int, dead_after: int, device: torch.device):
        self.dead_after = dead_after
        self.last_fired_F = torch.zeros(num_latents, dtype=torch.int64, device=device)

    def mark(self, latent_N: Tensor, fired_N: Tensor, tokens: int, dp: Axis) -> None:
        """Of `latent_N` (repeats allowed), those with `fired_N` fired in a step that ended at `tokens`."""
        self.last_fired_F.scatter_reduce_(0, latent_N, fired_N * tokens, "amax")
        dp.max(self.last_fired_F)

    def mask(self, tokens: int) -> Tensor:
        """True for latents that are dead at `tokens`, [F]."""
        return tokens - self.last_fired_F > self.dead_after
