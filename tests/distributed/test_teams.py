"""Producer groups: the stream is the one that lone producers send, whoever of the group computes what."""

import pytest
import torch

from sae_dist.config.sections import TopologyConfig
from sae_dist.core.errors import DataError
from sae_dist.core.place import Place
from sae_dist.distributed.mesh import Topology
from sae_dist.transport.collective import produce
from sae_dist.transport.in_step import next_round, produce_in_step
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
)
from tests.helpers.ranks import run_ranks
from tests.helpers.sources import Numbers


class Together(Numbers):
    """Numbers that a group computes together: every chunk, and every idling, waits for the whole group."""

    def __init__(self, topology: Topology, chunks: int):
        super().__init__(LANES, ROWS, chunks)
        self.team, self.in_step, self.idled = topology.team, topology.in_step, 0

    def open(self, lane, start):
        for chunk in super().open(lane, start):
            said = torch.tensor([1 if self.in_step else chunk.number])
            summed = int(self.team.sum(said.clone()))
            assert self.in_step or summed == chunk.number * self.team.size, "the group computes one chunk"
            yield chunk

    def idle(self):
        self.idled += 1
        self.team.sum(torch.zeros(1, dtype=torch.int64))


def drawn_from_teams(cfg: TopologyConfig, size: int, in_step: bool, resume_at: int, chunks: int):
    """Ids of every step on a consumer, and why they end; (chunks sent, rounds idled) on a producer."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    place = Place(rank, world, rank, world)
    topology = Topology(cfg, place, "cpu", team_size=size, in_step=in_step)
    stream = open_stream(topology, f"teams {cfg} {size} {in_step} {resume_at} {chunks}")
    if not topology.is_consumer:
        source = Together(topology, chunks)
        how = produce_in_step if in_step else produce
        return how(stream, source, cfg.in_flight), source.idled
    remote = remote_chunks(stream, in_flight=cfg.in_flight)
    shuffle = shuffle_of(remote, topology.rank, topology.num_consumers)
    advance(shuffle, topology.rank, topology.num_consumers, resume_at)
    found = []
    try:
        for step in range(resume_at, STEPS):
            found.append(shuffle.draw(step)[1].tolist())
    except DataError:
        pass
    remote.close()
    return found


@pytest.fixture(scope="module")
def alone():
    return ids_of_one_process()


@pytest.mark.parametrize("resume_at", [0, 11])
@pytest.mark.parametrize("in_step", [True, False])
@pytest.mark.parametrize(
    "producers,size,dp,shard,in_flight",
    [
        (1, 2, 1, 1, 2),
        (1, 3, 1, 2, 1),
        (2, 2, 2, 1, 2),
        pytest.param(1, 5, 1, 1, 1, marks=pytest.mark.long),
    ],
)
def test_batches_are_those_of_one_process(producers, size, dp, shard, in_flight, in_step, resume_at, alone):
    cfg = TopologyConfig(producers=producers, dp=dp, shard=shard, in_flight=in_flight)
    results = run_ranks(drawn_from_teams, dp * shard + producers * size, cfg, size, in_step, resume_at, 10**6)
    assert interleave(results[: dp * shard]) == alone[resume_at:]
    sent = results[dp * shard :]
    assert all(chunks > 0 for chunks, _ in sent)
    if not in_step:
        assert all(idled == 0 for _, idled in sent)


@pytest.mark.parametrize("size", [2, 5])
def test_a_group_in_step_ends_with_its_source(size):
    """Lanes that end leave some ranks of the last rounds without a chunk: they idle, and nobody hangs."""
    cfg = TopologyConfig(producers=1)
    consumer, *producers = run_ranks(drawn_from_teams, 1 + size, cfg, size, True, 0, 7)
    assert 0 < len(consumer) < STEPS
    assert sum(sent for sent, _ in producers) == 7 * LANES
    assert size == 2 or any(idled for _, idled in producers)


def test_rounds_follow_the_order_of_chunks():
    member = {v: v % 3 for v in range(5)}
    assert next_round([0, 1, 2, 3, 4], dict.fromkeys(range(5), 0), member, 5) == {0: 0, 1: 1, 2: 2}
    assert next_round([0, 1, 2, 3, 4], {0: 1, 1: 1, 2: 1, 3: 0, 4: 0}, member, 5) == {0: 3, 1: 4}
    # Lane 1 is far ahead: lane 0's next chunk comes before it.
    assert next_round([0, 1], {0: 0, 1: 4}, member, 5) == {0: 0}
