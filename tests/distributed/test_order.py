"""Every batch holds the rows that it holds in one process, whoever computes them and whoever trains on them.

No other machine can reach a rank of them.

All topologies are built on the first ranks of one world, so that its processes start once.
"""

import os

import pytest

from sae_dist.config.sections import TopologyConfig
from sae_dist.transport.collective import produce
from tests.distributed.streams import (
    LANES,
    ROWS,
    STEPS,
    advance,
    ids_of_one_process,
    interleave,
    open_stream,
    remote_chunks,
    shuffle_of,
    topology_of,
)
from tests.helpers.ranks import run_ranks
from tests.helpers.sockets import beyond_loopback, listening
from tests.helpers.sources import Numbers

WORLD = 11
MESHES = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)]
GRID = [
    pytest.param(producers, dp, shard, marks=pytest.mark.long if dp * shard > 4 else ())
    for producers in (0, 1, 2, 3)
    for dp, shard in MESHES
]
THREES = [(0, 1, 3), (1, 3, 1), (0, 2, 3), (2, 1, 6), (3, 3, 2)]
RESUMED = [(0, 1, 6), (1, 1, 1), (1, 2, 2), (2, 3, 1), (3, 1, 4)]


def drawn_ids(cfg: TopologyConfig, resume_at: list[int], stop_at: list[int]) -> list[list[int]] | int | None:
    """Ids of every step on a consumer; the number of chunks sent on a producer; nothing on other ranks."""
    topology, consumers = topology_of(cfg), cfg.dp * cfg.shard
    if topology.rank >= topology.world:
        return None
    stream = open_stream(topology, f"order {cfg} {resume_at} {stop_at}")
    if not topology.is_consumer:
        sent = produce(stream, Numbers(LANES, ROWS), cfg.in_flight)
        assert beyond_loopback(listening(os.getpid())) == set()
        return sent
    remote = remote_chunks(stream, in_flight=cfg.in_flight) if cfg.producers else None
    first = resume_at[topology.group]
    shuffle = shuffle_of(remote or Numbers(LANES, ROWS), topology.index, consumers)
    advance(shuffle, topology.index, consumers, first)
    found = [shuffle.draw(step)[1].tolist() for step in range(first, stop_at[topology.group])]
    if remote:
        remote.close()
    assert beyond_loopback(listening(os.getpid())) == set()
    return found


def check(
    cfg: TopologyConfig, resume_at: list[int], expected: list[list[int]], stop_at: list[int] | None = None
) -> None:
    stop_at = stop_at or [STEPS] * len(resume_at)
    results, consumers = run_ranks(drawn_ids, WORLD, cfg, resume_at, stop_at), cfg.dp * cfg.shard
    for group, (first, end) in enumerate(zip(resume_at, stop_at, strict=True)):
        assert interleave(results[group * consumers : (group + 1) * consumers]) == expected[first:end]
    producers = results[cfg.groups * consumers :][: cfg.producers]
    assert all(sent > 0 for sent in producers)


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    return ids_of_one_process()


@pytest.mark.parametrize("producers,dp,shard", GRID + THREES)
def test_batches_do_not_depend_on_topology(producers, dp, shard, alone):
    check(TopologyConfig(producers=producers, dp=dp, shard=shard), [0], alone)


@pytest.mark.parametrize("producers,dp,shard", RESUMED)
def test_consumers_resumed_in_the_middle(producers, dp, shard, alone):
    check(TopologyConfig(producers=producers, dp=dp, shard=shard), [11], alone)


@pytest.mark.parametrize("producers,dp,shard", [(3, 1, 1), (3, 2, 4)])
def test_more_producers_than_chunks_in_flight(producers, dp, shard, alone):
    check(TopologyConfig(producers=producers, dp=dp, shard=shard, in_flight=1), [0], alone)


@pytest.mark.parametrize(
    "producers,dp,shard,resume_at",
    [(1, 1, 2, [0, 0]), (2, 1, 1, [0, 0, 0]), (3, 2, 2, [0, 7]), (1, 1, 1, [11, 5])],
)
def test_groups_of_consumers_see_the_same_batches_wherever_they_begin(producers, dp, shard, resume_at, alone):
    cfg = TopologyConfig(producers=producers, dp=dp, shard=shard, groups=len(resume_at))
    check(cfg, resume_at, alone)


@pytest.mark.parametrize(
    "producers,shard,stop_at", [(1, 2, [3, STEPS]), (2, 1, [STEPS, 1, 14]), (3, 1, [9, 9])]
)
def test_a_group_that_stops_holds_up_no_other(producers, shard, stop_at, alone):
    cfg = TopologyConfig(producers=producers, shard=shard, groups=len(stop_at))
    check(cfg, [0] * len(stop_at), alone, stop_at)
