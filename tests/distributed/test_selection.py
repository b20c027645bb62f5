"""Sharded TopK selects what one topk over all latents selects: ties, odd rows, few bytes."""

import pytest
import torch
import torch.distributed as dist

from sae_dist.core.types import Codes
from sae_dist.dictionary.selection import select
from sae_dist.distributed.collectives import Axis
from sae_dist.kernels import reference, torch_backend
from tests.helpers.ranks import run_ranks

CASES = {
    "random": lambda g: torch.randn(12, 48, generator=g),
    "ties everywhere": lambda g: torch.randint(0, 3, (12, 48), generator=g).float(),
    "all equal": lambda g: torch.ones(12, 48),
    "all negative": lambda g: -torch.rand(12, 48, generator=g) - 1,
    "negative zero": lambda g: torch.randint(0, 2, (12, 48), generator=g).float() * -0.0,
    "one shard owns all winners": lambda g: torch.cat([torch.rand(12, 36), 5 + torch.rand(12, 12)], 1),
    "every shard owns some": lambda g: torch.arange(48.0).view(12, 4).t().reshape(1, 48).repeat(12, 1),
}


def selected(scores: torch.Tensor, k: int) -> tuple[list[set[int]], int, dict]:
    """Global latents selected on this rank's shard for each row, and the bytes received."""
    axis = Axis("shard", dist.group.WORLD)
    local = scores.shape[1] // axis.size
    mine = scores[:, axis.rank * local : (axis.rank + 1) * local]
    val, idx = torch_backend.topk_rows(mine, min(k, local))
    codes: Codes = select(val, idx, k, axis, torch_backend)
    counts = [idx.shape[1]] * len(scores) if codes.count_B is None else codes.count_B.tolist()
    rows = [{axis.rank * local + int(i) for i in idx[b, : counts[b]]} for b in range(len(scores))]
    return rows, dict(axis.bytes)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 5, 12, 30])
@pytest.mark.parametrize("case", CASES)
def test_equals_one_topk(case, k, world):
    scores = CASES[case](torch.Generator().manual_seed(1))
    results = run_ranks(selected, world, scores, k)
    expected = reference.topk_rows(scores, k)[1]
    for row in range(len(scores)):
        union = [latent for rows, _ in results for latent in rows[row]]
        assert len(union) == k, "exactly k, whatever the ties"
        assert set(union) == set(expected[row].tolist())


@pytest.mark.parametrize("world", [2, 4])
def test_bytes_are_those_of_row_owners(world):
    k, rows = 4, 64
    scores = torch.randn(rows, 16 * world)
    for _, received in run_ranks(selected, world, scores, k):
        # Values of the rows this rank owns from every other shard, and one int16 per row as answer.
        assert received == {"exchange_rows": (world - 1) * (rows // world) * (4 * k + 2)}
        assert received["exchange_rows"] < rows * (4 * k + 4)


def padded(k: int) -> list[int]:
    """Rank 0 has two real candidates and padding, rank 1 none."""
    axis = Axis("shard", dist.group.WORLD)
    val = torch.full((4, k), -torch.inf)
    if axis.rank == 0:
        val[:, :2] = torch.tensor([2.0, 1.0])
    idx = torch.zeros(4, k, dtype=torch.int64)
    return select(val, idx, k, axis, torch_backend, padded=True).count_B.tolist()


@pytest.mark.parametrize("world", [1, 2])
def test_padding_never_wins(world):
    results = run_ranks(padded, world, 3)
    assert results[0] == [2, 2, 2, 2]
    assert all(counts == [0, 0, 0, 0] for counts in results[1:])
