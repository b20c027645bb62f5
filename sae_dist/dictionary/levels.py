"""Levels of Matryoshka dictionaries: which prefix a latent belongs to.

Levels are a function of the latent's storage index alone and lie evenly spread over it, so that every shard
holds its share of every prefix. Exports sort latents by level, which makes prefixes of them.
"""

import torch
from torch import Tensor

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
