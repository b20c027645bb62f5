"""Streams of row numbers between gloo ranks: what the tests of transport share."""

from typing import Any

import torch

from sae_dist.config.sections import TopologyConfig
from sae_dist.core.place import Place
from sae_dist.distributed.mesh import Topology
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.transport.collective import RemoteChunks
from sae_dist.transport.wire import Stream
from tests.helpers.sources import Numbers

LANES, ROWS, BATCH, STEPS, BLOCK = 24, 8, 96, 18, 2


def topology_of(cfg: TopologyConfig) -> Topology:
    """On the first ranks of the world. All ranks call this; those beyond play no part."""
    rank = torch.distributed.get_rank()
    world = cfg.producers + cfg.groups * cfg.dp * cfg.shard
    return Topology(cfg, Place(rank, world, rank, 1), "cpu")


def open_stream(topology: Topology, name: str, **options: Any) -> Stream:
    sizes = {"lanes": LANES, "rows": ROWS, "width": 1, "dtype": torch.float64, "timeout_s": 30.0}
    return Stream(topology, device=torch.device("cpu"), name=name, **(sizes | options))


def remote_chunks(stream: Stream, *, in_flight: int = 2, ahead: int = 2 * BLOCK + 1) -> RemoteChunks:
    lanes = stream.topology.lanes_of_consumer(stream.topology.index, stream.lanes)
    return RemoteChunks(stream, lanes=lanes, ahead=ahead, in_flight=in_flight)


def shuffle_of(chunks: Any, rank: int = 0, consumers: int = 1, steps: int = STEPS) -> Shuffle:
    return Shuffle(
        chunks,
        list(range(rank, LANES, consumers)),
        num_lanes=LANES,
        rows_per_step=BATCH // consumers,
        steps=steps,
        seed=3,
        block_chunks=BLOCK,
    )


def ids_of_one_process(steps: int = STEPS) -> list[list[int]]:
    """Ids of every step, drawn by one rank that makes all chunks itself."""
    shuffle = shuffle_of(Numbers(LANES, ROWS))
    return [shuffle.draw(step)[1].tolist() for step in range(steps)]


def advance(shuffle: Shuffle, rank: int, consumers: int, step: int) -> None:
    """Bring a shuffle to the state that another one, without producers, has after `step` steps."""
    if step:
        before = shuffle_of(Numbers(LANES, ROWS), rank, consumers)
        for earlier in range(step):
            before.draw(earlier)
        shuffle.restore(before.state())


def interleave(parts: list[list[list[int]]]) -> list[list[int]]:
    """Rows of the run in order: rank r holds rows r, r + C, ..."""
    return [[row for rows in zip(*step, strict=True) for row in rows] for step in zip(*parts, strict=True)]
