"""Initial weights: functions of (seed, global latent index), so they do not depend on sharding (I8)."""

import torch
from torch import Tensor

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
