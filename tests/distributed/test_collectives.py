"""The vocabulary of collectives: values, gradients, bytes."""

import pickle

import pytest
import torch
import torch.distributed as dist

from sae_dist.core.errors import TransportError
from sae_dist.distributed.collectives import Axis
from tests.helpers.ranks import run_ranks


def two_ranks_two_values() -> dict:
    axis = Axis("all", dist.group.WORLD)
    own = torch.full((4, 3), float(axis.rank + 1), dtype=torch.float64, requires_grad=True)
    part = axis.scatter_sum_rows(own)
    (part * (axis.rank + 1)).sum().backward()
    return {
        "gather": axis.gather_rows(own.detach()[:2])[:, 0].tolist(),
        "exchange": axis.exchange_rows(own.detach() + torch.arange(4.0)[:, None])[:, 0].tolist(),
        "sum": axis.sum(own.detach()[0, :1].clone()).item(),
        "max": axis.max(own.detach()[0, :1].clone()).item(),
        "scatter_sum": part.detach()[:, 0].tolist(),
        "grad": own.grad[:, 0].tolist(),
        "bytes": dict(axis.bytes),
    }


def test_two_ranks():
    first, second = run_ranks(two_ranks_two_values, 2)
    assert first["sum"] == second["sum"] == 3.0
    assert first["max"] == second["max"] == 2.0
    assert first["gather"] == second["gather"] == [1.0, 1.0, 2.0, 2.0]
    assert first["exchange"] == [1.0, 2.0, 2.0, 3.0]
    assert second["exchange"] == [3.0, 4.0, 4.0, 5.0]
    assert first["scatter_sum"] == [3.0, 3.0]
    # The gradient of row i is that of its owner: rank 0 scaled by 1, rank 1 by 2.
    assert first["grad"] == second["grad"] == [1.0, 1.0, 2.0, 2.0]
    # Backward of the reduce-scatter gathered 2 x 3 doubles from the other rank, besides the explicit call.
    assert first["bytes"]["gather_rows"] == 2 * (2 * 3 * 8)


def one_tells(lie: bytes) -> list | str:
    axis = Axis("all", dist.group.WORLD)
    own = {"rank": axis.rank, "words": "a\nb \u2028" * axis.rank, "numbers": [0.1, None]}
    if not lie:
        return axis.gather_json(own)
    if axis.rank == 1:
        axis.gather_ragged(torch.frombuffer(bytearray(lie), dtype=torch.uint8))
        return ""
    with pytest.raises(TransportError) as refusal:
        axis.gather_json(own)
    return str(refusal.value)


def test_values_travel_as_json():
    expected = [{"rank": n, "words": "a\nb \u2028" * n, "numbers": [0.1, None]} for n in range(3)]
    assert run_ranks(one_tells, 3, b"") == [expected] * 3
    # A pickle, two values instead of one, none at all.
    for lie in (pickle.dumps({"rank": 1}), b"1\n2\n", b"\n"):
        first, _, last = run_ranks(one_tells, 3, lie)
        assert first == last and "are no JSON of 3 ranks" in first


def identities() -> bool:
    axis = Axis("one", dist.group.WORLD)
    value = torch.arange(6.0).view(3, 2)
    same = [axis.gather_rows(value), axis.exchange_rows(value), axis.scatter_sum_rows(value), axis.sum(value)]
    return all(v is value for v in same) and not axis.bytes


def test_size_one_is_the_identity():
    assert run_ranks(identities, 1) == [True]
