"""Initial weights and levels by latent index, and the record of when each latent last fired.

Initial weights are functions of (seed, global latent index), so they do not depend on sharding (I8). The
level of a latent in a Matryoshka dictionary says which prefix it belongs to. It is a function of the storage
index alone, and levels are spread evenly over the indices, so that every shard holds its share of every
prefix. Exports sort latents by level: then the prefixes are the first latents. A latent is dead when it has
not fired for `sae.dead_after` tokens, over all replicas.

Letters: as core.types; N latents to mark, some of them several times.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sae_dist.core.moving import moved
from sae_dist.distributed.collectives import Axis

BLOCK = 256
"""Latents per random generator: a shard draws the blocks that it overlaps, and slices them."""


def unit_rows(seed: int, first: int, last: int, width: int, stream: int = 0) -> Tensor:
    """Return rows `first` .. `last` of an initial matrix: Gaussian directions of unit norm, fp64 [n, width].

    Args:
        stream: number of the matrix, for several independent ones from one seed.
    """
    return torch.cat(list(unit_blocks(seed, first, last, width, stream)))


def unit_blocks(seed: int, first: int, last: int, width: int, stream: int = 0) -> Iterator[Tensor]:
    """Yield the rows that `unit_rows` returns, a block at a time: all of them would be fp64 at once."""
    for block in range(first // BLOCK, (last + BLOCK - 1) // BLOCK):
        generator = torch.Generator().manual_seed((seed + stream * 2**33) * 1_000_003 + block)
        rows = torch.randn(BLOCK, width, dtype=torch.float64, generator=generator)
        start = block * BLOCK
        rows_fD = rows[max(first - start, 0) : last - start]
        yield rows_fD / rows_fD.norm(dim=1, keepdim=True)


def fill(targets: Sequence[tuple[Tensor, float]], blocks: Iterable[Tensor]) -> None:
    """Write rows into matrices, each times the matrix's factor and in its dtype, on its device.

    Args:
        targets: matrices with as many rows as there are in all blocks, and factors.
    """
    at = 0
    for rows_fD in blocks:
        for matrix_FD, factor in targets:
            part_fD = (factor * rows_fD).to(matrix_FD.dtype)
            matrix_FD[at : at + len(rows_fD)] = moved(part_fD, matrix_FD.device)
        at += len(rows_fD)


GOLDEN = 0.6180339887498949
"""The golden ratio minus 1, whose first n multiples modulo 1 are evenly spread for any n."""


def prefix_sizes(num_latents: int, prefixes: list[float]) -> list[int]:
    """Return how many latents each nested prefix has, from cumulative fractions; the last has all."""
    return [max(1, round(fraction * num_latents)) for fraction in prefixes[:-1]] + [num_latents]


def levels(num_latents: int, prefixes: list[float]) -> Tensor:
    """Return the level of each latent by storage index, int64 [num_latents]; 0: the smallest prefix."""
    place = (torch.arange(num_latents, dtype=torch.float64) * GOLDEN % 1).argsort(stable=True)
    found = torch.empty(num_latents, dtype=torch.int64)
    bounds = torch.tensor(prefix_sizes(num_latents, prefixes))
    found[place] = torch.bucketize(torch.arange(num_latents), bounds, right=True)
    return found


class DeadLatents:
    """A record of when each latent of this shard last fired, in tokens seen by the whole run."""

    def __init__(self, num_latents: int, dead_after: int, device: torch.device):
        self.dead_after = dead_after
        self.last_fired_F = torch.zeros(num_latents, dtype=torch.int64, device=device)

    def mark(self, latent_N: Tensor, fired_N: Tensor, tokens: int, dp: Axis) -> None:
        """Record that the latents `latent_N` with `fired_N` fired in a step that ended at `tokens`.

        Args:
            latent_N: may repeat.
            dp: the replicas, whose records are merged.
        """
        self.last_fired_F.scatter_reduce_(0, latent_N, fired_N * tokens, "amax")
        dp.max(self.last_fired_F)

    def mask(self, tokens: int) -> Tensor:
        """Return which latents are dead at `tokens`, bool [F]."""
        return tokens - self.last_fired_F > self.dead_after
