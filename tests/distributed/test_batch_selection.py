"""BatchTopK over shards and replicas selects what one sort of the whole batch selects, ties included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_dist.config.sections import TopologyConfig
from sae_dist.core.place import Place
from sae_dist.dictionary.batch_selection import float_keys, nth_largest, select_batch
from sae_dist.distributed.mesh import Topology
from sae_dist.kernels import torch_backend
from tests.helpers.ranks import run_ranks

ROWS, LATENTS = 16, 48
CASES = {
    "random": lambda g: torch.randn(ROWS, LATENTS, generator=g),
    "ties everywhere": lambda g: torch.randint(-1, 3, (ROWS, LATENTS), generator=g).float(),
    "all equal": lambda g: torch.ones(ROWS, LATENTS),
    "all negative": lambda g: -torch.rand(ROWS, LATENTS, generator=g) - 1,
    "negative zero": lambda g: torch.randint(0, 2, (ROWS, LATENTS), generator=g).float() * -0.0,
    "few positive": lambda g: torch.randn(ROWS, LATENTS, generator=g) - 2.5,
    "one row owns all": lambda g: (
        torch.randn(ROWS, LATENTS, generator=g) + 10 * (torch.arange(ROWS) == 5)[:, None]
    ),
    "one shard owns all": lambda g: torch.cat(
        [torch.rand(ROWS, 36, generator=g), 5 + torch.rand(ROWS, 12, generator=g)], 1
    ),
    "tiny": lambda g: torch.rand(ROWS, LATENTS, generator=g) * 1e-42,
}
MESHES = [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2)]


def selected(scores: torch.Tensor, k: int, dp: int, shard: int) -> tuple[set, float, dict]:
    """(row, latent) selected on this rank, the threshold, and the bytes received.

    The scores are those of an identity encoder: x = scores of this rank's rows.
    """
    place = Place(torch.distributed.get_rank(), dp * shard, 0, 1)
    topology = Topology(TopologyConfig(dp=dp, shard=shard), place, "cpu")
    local = LATENTS // shard
    first = topology.shard.rank * local
    x_BD = topology.shard.gather_rows(scores[topology.rank :: topology.num_consumers])
    numbers = torch.arange(len(scores))[topology.rank :: topology.num_consumers]
    number_B = topology.shard.gather_rows(numbers)
    W = torch.eye(LATENTS, dtype=scores.dtype)[first : first + local]
    found = select_batch(
        x_BD, W, torch.zeros(local, dtype=scores.dtype), k, len(scores), topology, torch_backend
    )
    codes = found.codes
    pairs = {
        (int(number_B[b]), first + int(latent))
        for b in range(len(x_BD))
        for latent in codes.idx_BK[b, : int(codes.count_B[b])]
    }
    return pairs, float(found.threshold), dict(topology.consumers.bytes)


def expected(scores: torch.Tensor, k: int) -> set:
    """By one stable sort: value descending, then (row, latent)."""
    flat = torch.where(scores > 0, scores, 0.0).flatten()
    order = flat.sort(descending=True, stable=True).indices[: k * len(scores)]
    return {(int(i) // LATENTS, int(i) % LATENTS) for i in order if flat[i] > 0}


@pytest.mark.parametrize("dp,shard", MESHES)
@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("case", CASES)
def test_equals_one_sort(case, k, dp, shard):
    scores = CASES[case](torch.Generator().manual_seed(1))
    results = run_ranks(selected, dp * shard, scores, k, dp, shard)
    union: set = set().union(*(pairs for pairs, _, _ in results))
    # Over dp replicas rows differ, over shards latents: nothing is selected twice.
    assert sum(len(pairs) for pairs, _, _ in results) == len(union)
    want = expected(scores, k)
    assert union == want
    smallest = min((float(scores[pair]) for pair in want), default=0.0)
    assert {threshold for _, threshold, _ in results} == {smallest}


def test_few_bytes_whatever_the_rows():
    scores = torch.randn(ROWS * 8, LATENTS, generator=torch.Generator().manual_seed(0))
    for _, _, received in run_ranks(selected, 2, scores, 2, 1, 2):
        # Digits: 4 of the scores and 2 of the places, 256 counts of 8 bytes each, for at most two rounds.
        assert received["sum"] <= 2 * 6 * 256 * 8


@given(
    values=st.lists(st.sampled_from([0.0, -1.0, 1.0, 2.0, 0.5, 3e38, 1e-45, 2.5]), min_size=1, max_size=60),
    wanted=st.integers(1, 70),
    double=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_nth_largest_is_that_of_a_sort(values, wanted, double):
    value = torch.tensor(values, dtype=torch.float64 if double else torch.float32)
    key, bits = float_keys(value)
    found, missing = nth_largest(key, torch.tensor(wanted), bits, _Alone())
    positive = sorted((v for v in value.tolist() if v > 0), reverse=True)
    if len(positive) < wanted:
        assert int(found) == 0
        return
    kth = positive[wanted - 1]
    assert value[key == found].unique().tolist() == [kth]
    assert int(missing) == wanted - sum(v > kth for v in positive)


class _Alone:
    """An axis of one rank."""

    @staticmethod
    def sum(value: torch.Tensor) -> torch.Tensor:
        return value
