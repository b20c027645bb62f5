"""Every batch holds the rows that it holds in one process, whoever computes them and whoever trains on them.

All topologies are built on the first ranks of one world, so that its processes start once.
"""

import pytest

from sae_dist.core.config import TopologyConfig
from sae_dist.transport.collective import produce
from tests.dist.streams import (
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
from tests.ranks import run_ranks
from tests.sources import Numbers

WORLD = 11
MESHES = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)]
GRID = [(producers, dp, shard) for producers in (0, 1, 2, 3) for dp, shard in MESHES]
THREES = [(0, 1, 3), (1, 3, 1), (0, 2, 3), (2, 1, 6), (3, 3, 2)]
RESUMED = [(0, 1, 6), (1, 1, 1), (1, 2, 2), (2, 3, 1), (3, 1, 4)]


def drawn_ids(cfg: TopologyConfig, resume_at: int) -> list[list[int]] | int | None:
    """Ids of every step on a consumer; the number of chunks sent on a producer; nothing on other ranks."""
    topology, consumers = topology_of(cfg), cfg.dp * cfg.shard
    if topology.rank >= topology.world:
        return None
    stream = open_stream(topology, f"order {cfg} {resume_at}")
    if not topology.is_consumer:
        return produce(stream, Numbers(LANES, ROWS), cfg.in_flight)
    remote = remote_chunks(stream, in_flight=cfg.in_flight) if cfg.producers else None
    shuffle = shuffle_of(remote or Numbers(LANES, ROWS), topology.rank, consumers)
    advance(shuffle, topology.rank, consumers, resume_at)
    found = [shuffle.draw(step)[1].tolist() for step in range(resume_at, STEPS)]
    if remote:
        remote.close()
    return found


def check(cfg: TopologyConfig, resume_at: int, expected: list[list[int]]) -> None:
    results, consumers = run_ranks(drawn_ids, WORLD, cfg, resume_at), cfg.dp * cfg.shard
    assert interleave(results[:consumers]) == expected[resume_at:]
    assert all(sent > 0 for sent in results[consumers : consumers + cfg.producers])


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    return ids_of_one_process()


@pytest.mark.parametrize("producers,dp,shard", GRID + THREES)
def test_batches_do_not_depend_on_topology(producers, dp, shard, alone):
    check(TopologyConfig(producers=producers, dp=dp, shard=shard), 0, alone)


@pytest.mark.parametrize("producers,dp,shard", RESUMED)
def test_consumers_resumed_in_the_middle(producers, dp, shard, alone):
    check(TopologyConfig(producers=producers, dp=dp, shard=shard), 11, alone)


@pytest.mark.parametrize("producers,dp,shard", [(3, 1, 1), (3, 2, 4)])
def test_more_producers_than_chunks_in_flight(producers, dp, shard, alone):
    check(TopologyConfig(producers=producers, dp=dp, shard=shard, in_flight=1), 0, alone)
