"""Levels of Matryoshka dictionaries: sizes, and even spread over shards."""

import pytest
import torch

from sae_dist.dictionary.latents import levels, prefix_sizes


@pytest.mark.parametrize("latents", [32, 4096, 12287])
@pytest.mark.parametrize("prefixes", [[1.0], [0.0625, 0.25, 1.0], [0.1, 0.2, 0.4, 0.8, 1.0]])
def test_prefixes_have_their_sizes(latents, prefixes):
    level = levels(latents, prefixes)
    counts = torch.bincount(level, minlength=len(prefixes)).cumsum(0).tolist()
    assert counts == prefix_sizes(latents, prefixes)
    assert counts[-1] == latents


@pytest.mark.parametrize("shards", [2, 3, 8, 64])
def test_every_shard_holds_its_share_of_every_prefix(shards):
    latents = 6144
    level = levels(latents, [0.0625, 0.25, 1.0]).view(shards, -1)
    for number, share in enumerate([0.0625, 0.1875, 0.75]):
        counts = (level == number).sum(1)
        assert (counts - share * latents / shards).abs().max() <= 3
