"""Producers to consumers: every batch holds the rows it holds in one process, and all ends cleanly."""

import time

import pytest
import torch

from sae_dist.core.config import TopologyConfig
from sae_dist.core.errors import DataError, TransportError
from sae_dist.core.types import ChunkSource
from sae_dist.dist import runtime
from sae_dist.dist.mesh import Topology
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.transport.collective import RemoteChunks, Stream, produce
from tests.ranks import run_ranks
from tests.sources import Numbers

LANES, ROWS, BATCH, STEPS, BLOCK = 24, 8, 96, 30, 2


def open_stream(topology: Topology, name: str, timeout_s: float = 30.0) -> Stream:
    return Stream(
        topology,
        lanes=LANES,
        rows=ROWS,
        width=1,
        dtype=torch.float64,
        device=torch.device("cpu"),
        timeout_s=timeout_s,
        name=name,
    )


def shuffle_of(chunks, topology: Topology, steps: int = STEPS) -> Shuffle:
    return Shuffle(
        chunks,
        topology.lanes_of_consumer(topology.rank, LANES),
        num_lanes=LANES,
        rows_per_step=BATCH // topology.num_consumers,
        steps=steps,
        seed=3,
        block_chunks=BLOCK,
    )


def topology_of(cfg: TopologyConfig) -> Topology:
    rank = torch.distributed.get_rank()
    return Topology(cfg, runtime.Place(rank, cfg.producers + cfg.dp * cfg.shard, rank, 1), "cpu")


def drawn_ids(cfg: TopologyConfig, resume_at: int, chunks: int = 10**6) -> list[list[int]] | int:
    """Ids of every step on a consumer; the number of chunks sent on a producer."""
    topology, name = topology_of(cfg), f"order {cfg} {resume_at} {chunks}"
    if not topology.is_consumer:
        return produce(open_stream(topology, name), Numbers(LANES, ROWS, chunks), cfg.in_flight)
    if not cfg.producers:
        remote = None
        shuffle = shuffle_of(Numbers(LANES, ROWS, chunks), topology)
    else:
        remote = RemoteChunks(
            open_stream(topology, name),
            lanes=topology.lanes_of_consumer(topology.rank, LANES),
            ahead=2 * BLOCK + 1,
            in_flight=cfg.in_flight,
        )
        shuffle = shuffle_of(remote, topology)
    if resume_at:
        before = shuffle_of(Numbers(LANES, ROWS), topology)
        for step in range(resume_at):
            before.draw(step)
        shuffle.restore(before.state())
    found = [shuffle.draw(step)[1].tolist() for step in range(resume_at, STEPS)]
    if remote:
        remote.close()
    return found


def interleave(parts: list[list[list[int]]]) -> list[list[int]]:
    """Rows of the run in order: rank r holds rows r, r + C, ..."""
    return [[row for rows in zip(*step, strict=True) for row in rows] for step in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    return run_ranks(drawn_ids, 1, TopologyConfig(), 0)[0]


@pytest.mark.parametrize("resume_at", [0, 11])
@pytest.mark.parametrize(
    "producers,dp,shard",
    [(0, 2, 1), (0, 1, 3), (0, 2, 3), (1, 1, 1), (1, 1, 2), (2, 2, 1), (3, 1, 1), (2, 2, 2)],
)
def test_batches_do_not_depend_on_topology(producers, dp, shard, resume_at, alone):
    cfg = TopologyConfig(producers=producers, dp=dp, shard=shard)
    results = run_ranks(drawn_ids, producers + dp * shard, cfg, resume_at)
    consumers, sent = results[: dp * shard], results[dp * shard :]
    assert interleave(consumers) == alone[resume_at:]
    assert all(count > 0 for count in sent)


def slow_consumer(cfg: TopologyConfig) -> int:
    """A consumer that stops to think: how far ahead of it the producer was let run, in chunks."""
    topology = topology_of(cfg)
    if not topology.is_consumer:
        source = Numbers(LANES, ROWS)
        produce(open_stream(topology, "slow"), source, cfg.in_flight)
        return source.asked
    remote = RemoteChunks(
        open_stream(topology, "slow"), lanes=list(range(LANES)), ahead=3, in_flight=cfg.in_flight
    )
    shuffle = shuffle_of(remote, topology, steps=3)
    shuffle.draw(0)
    time.sleep(1.0)
    remote.close()
    return sum(lane.counts.chunks for lane in shuffle.lanes)


def test_back_pressure_bounds_the_producer():
    pulled, computed = run_ranks(slow_consumer, 2, TopologyConfig(producers=1))
    assert pulled <= computed <= pulled + 3 * LANES + 2 * 2 + 2


def source_runs_out(cfg: TopologyConfig) -> str:
    try:
        drawn_ids(cfg, 0, 3)
    except DataError as error:
        return str(error)
    return ""


def test_source_that_runs_out_is_named():
    consumer, producer = run_ranks(source_runs_out, 2, TopologyConfig(producers=1))
    assert "tokens.epochs" in consumer and producer == ""


def exactly_enough(cfg: TopologyConfig, chunks: int) -> int:
    """Steps that this rank can draw from lanes of so many chunks."""
    topology = topology_of(cfg)
    name = f"enough {cfg} {chunks}"
    if not topology.is_consumer:
        produce(open_stream(topology, name), Numbers(LANES, ROWS, chunks), cfg.in_flight)
        return 0
    source: ChunkSource = Numbers(LANES, ROWS, chunks)
    if cfg.producers:
        lanes = topology.lanes_of_consumer(topology.rank, LANES)
        source = RemoteChunks(open_stream(topology, name), lanes=lanes, ahead=5, in_flight=cfg.in_flight)
    shuffle, drawn = shuffle_of(source, topology, steps=1000), 0
    try:
        while True:
            shuffle.draw(drawn)
            drawn += 1
    except DataError:
        if isinstance(source, RemoteChunks):
            source.close()
        return drawn


@pytest.mark.parametrize("producers,dp", [(1, 1), (2, 2)])
def test_sources_that_end_give_as_much_through_producers(producers, dp):
    steps = run_ranks(exactly_enough, 1, TopologyConfig(), 8)[0]
    results = run_ranks(exactly_enough, producers + dp, TopologyConfig(producers=producers, dp=dp), 8)
    # Lanes differ by a block; alone, the first that ends is the end, and here it is one rank's.
    assert steps > 5 and min(results[:dp]) == steps


def never_read(cfg: TopologyConfig) -> int:
    """A resumed run that was trained to its end opens the stream and closes it."""
    topology = topology_of(cfg)
    if not topology.is_consumer:
        return produce(open_stream(topology, "never"), Numbers(LANES, ROWS), cfg.in_flight)
    lanes = topology.lanes_of_consumer(topology.rank, LANES)
    RemoteChunks(open_stream(topology, "never"), lanes=lanes, ahead=5, in_flight=cfg.in_flight).close()
    return 0


def test_a_stream_that_is_never_read_closes():
    assert run_ranks(never_read, 3, TopologyConfig(producers=1, shard=2)) == [0, 0, 0]


def silent_peer(cfg: TopologyConfig) -> str:
    topology = topology_of(cfg)
    if not topology.is_consumer:
        return ""
    remote = RemoteChunks(
        open_stream(topology, "silent", timeout_s=1.5), lanes=list(range(LANES)), ahead=3, in_flight=2
    )
    try:
        shuffle_of(remote, topology).draw(0)
    except TransportError as error:
        return str(error)
    return "no error"


def test_silent_producer_is_named():
    consumer, _ = run_ranks(silent_peer, 2, TopologyConfig(producers=1))
    assert "producer rank 1 was silent for 1.5 s" in consumer
