"""How a stream ends: enough on either side, a silent rank, a rank that fails. Always soon, and by name."""

import socket
import threading
import time

import pytest

from sae_dist.config.sections import TopologyConfig
from sae_dist.core.errors import DataError, TransportError
from sae_dist.transport.collective import produce
from tests.distributed.streams import LANES, ROWS, open_stream, remote_chunks, shuffle_of, topology_of
from tests.helpers.ranks import run_ranks
from tests.helpers.sources import Numbers

WORLD, TIMEOUT_S = 4, 1.5
SHORT = TopologyConfig(producers=1, timeout_s=TIMEOUT_S)


def ended(function, *arguments):
    """(what function returned or the error it ended with, seconds, threads of the stream that are left)"""
    before, began = set(threading.enumerate()), time.monotonic()
    try:
        result = function(*arguments)
    except (DataError, TransportError) as error:
        result = str(error)
    seconds = time.monotonic() - began
    time.sleep(0.2)  # a thread that has raised its error is about to end
    left = [each.name for each in set(threading.enumerate()) - before]
    return result, seconds, [name for name in left if name in ("send", "receive")]


def some_steps(cfg, steps, chunks=10**6):
    """Draw so many steps, close; or produce."""
    topology = topology_of(cfg)
    if topology.rank >= topology.world:
        return None
    stream = open_stream(topology, f"ends {cfg} {steps} {chunks}")
    if not topology.is_consumer:
        return ended(produce, stream, Numbers(LANES, ROWS, chunks), cfg.in_flight)
    remote = remote_chunks(stream, in_flight=cfg.in_flight)

    def draw():
        drawn, shuffle = 0, shuffle_of(remote, topology.rank, topology.num_consumers, steps=1000)
        try:
            while drawn < steps:
                shuffle.draw(drawn)
                drawn += 1
        finally:
            remote.close()
        return drawn

    return ended(draw)


@pytest.mark.parametrize("producers,dp", [(1, 1), (2, 2), (3, 1)])
def test_consumers_have_enough(producers, dp):
    results = run_ranks(some_steps, WORLD, TopologyConfig(producers=producers, dp=dp), 7)
    for result, seconds, threads in results[: producers + dp]:
        assert isinstance(result, int) and result > 0 and seconds < 10 and threads == []
    assert [result for result, _, _ in results[:dp]] == [7] * dp


@pytest.mark.parametrize("producers,dp,in_flight", [(1, 1, 2), (2, 2, 2), (1, 3, 2), (3, 1, 5)])
def test_tokens_run_out(producers, dp, in_flight):
    cfg, chunks = TopologyConfig(producers=producers, dp=dp, in_flight=in_flight), 8
    results = run_ranks(some_steps, WORLD, cfg, 10**6, chunks)
    for result, _, threads in results[:dp]:
        assert "tokens.epochs" in result and threads == []
    assert sum(result for result, _, _ in results[dp : dp + producers]) == chunks * LANES
    assert all(threads == [] for _, _, threads in results[: dp + producers])


def short_lanes(cfg):
    """Every lane ends after one chunk, with many credits given ahead; most are read when all has arrived."""
    topology = topology_of(cfg)
    if topology.rank >= topology.world:
        return None
    stream = open_stream(topology, "short lanes")
    if not topology.is_consumer:
        return produce(stream, Numbers(LANES, ROWS, 1), cfg.in_flight)
    remote = remote_chunks(stream, in_flight=cfg.in_flight, ahead=1)
    chunks = [remote.open(lane, None) for lane in remote.lanes]
    found = [chunk.number for lane in chunks for chunk in lane]
    remote.close()
    return found


def test_lanes_that_have_ended_before_they_are_read():
    results = run_ranks(short_lanes, WORLD, TopologyConfig(producers=1, in_flight=20), timeout_s=30)
    assert results[:2] == [list(range(LANES)), LANES]


def drawn_until_the_end(cfg, chunks):
    """Steps that this rank can draw from lanes of so many chunks."""
    topology = topology_of(cfg)
    if topology.rank >= topology.world:
        return 0
    stream = open_stream(topology, f"enough {cfg} {chunks}")
    if not topology.is_consumer:
        return produce(stream, Numbers(LANES, ROWS, chunks), cfg.in_flight)
    remote = remote_chunks(stream)
    steps = steps_of(remote, topology.rank, topology.num_consumers)
    remote.close()
    return steps


def steps_of(source, rank=0, consumers=1):
    shuffle, drawn = shuffle_of(source, rank, consumers, steps=1000), 0
    try:
        while True:
            shuffle.draw(drawn)
            drawn += 1
    except DataError:
        return drawn


@pytest.mark.parametrize("producers,dp", [(1, 1), (2, 2)])
def test_sources_that_end_give_as_much_through_producers(producers, dp):
    steps = steps_of(Numbers(LANES, ROWS, 8))
    results = run_ranks(drawn_until_the_end, WORLD, TopologyConfig(producers=producers, dp=dp), 8)
    # Lanes differ by a block; alone, the first that ends is the end, and here it is one rank's.
    assert steps > 5 and min(results[:dp]) == steps


def never_read(cfg):
    """A resumed run that was trained to its end opens the stream and closes it."""
    topology = topology_of(cfg)
    if topology.rank >= topology.world:
        return None
    stream = open_stream(topology, "never")
    if topology.is_consumer:
        remote_chunks(stream).close()
        return 0
    return produce(stream, Numbers(LANES, ROWS), cfg.in_flight)


def test_a_stream_that_is_never_read_closes():
    assert run_ranks(never_read, WORLD, TopologyConfig(producers=1, shard=2))[:3] == [0, 0, 0]


def silent(cfg, who):
    """One side says nothing, at first or after the credit or the size of chunk 0; how the other ends."""
    topology = topology_of(cfg)
    if topology.rank >= topology.world:
        return None
    stream = open_stream(topology, f"silent {who}", timeout_s=TIMEOUT_S)
    if topology.is_consumer:
        remote = remote_chunks(stream)
        if who.startswith("producer"):
            return ended(shuffle_of(remote).draw, 0)
        for lane in remote.lanes:
            remote.open(lane, None)
        if who.endswith("within a chunk"):
            for lane in remote.lanes:
                stream.grant(lane, "go")
        return None
    if who.startswith("consumer"):
        return ended(produce, stream, Numbers(LANES, ROWS), cfg.in_flight)
    if who.endswith("within a chunk"):
        stream.control.set("size/0/0", "576")
        time.sleep(TIMEOUT_S + 1)  # with its connection open
    return None


@pytest.mark.parametrize(
    "who,said",
    [
        ("producer", "producer rank 1 was silent for 1.5 s (topology.timeout_s), in a wait for size/0/0"),
        ("consumer", "consumer rank 0 was silent for 1.5 s (topology.timeout_s), in a wait for credit/0/0"),
        (
            "producer within a chunk",
            "producer rank 1 was silent for 1.5 s (topology.timeout_s), in the middle",
        ),
        (
            "consumer within a chunk",
            "consumer rank 0 was silent for 1.5 s (topology.timeout_s), in the middle",
        ),
    ],
)
def test_the_silent_rank_is_named(who, said):
    results = run_ranks(silent, WORLD, SHORT, who)
    error, seconds, threads = results[0] or results[1]
    assert error.startswith(said)
    assert TIMEOUT_S <= seconds < TIMEOUT_S + 1.5 and threads == []


class Breaking(Numbers):
    """A source that fails after a few chunks."""

    def open(self, lane, start):
        for chunk in super().open(lane, start):
            if self.asked > 30:
                raise DataError("shard 7 is damaged")
            yield chunk


def one_fails(cfg, who):
    """As `train.rank`: who fails tells the others and leaves; the timeout is 30 s."""
    topology = topology_of(cfg)
    if topology.rank >= topology.world:
        return None
    stream = open_stream(topology, f"fails {who}")

    def live():
        if not topology.is_consumer:
            source = Breaking(LANES, ROWS) if who == topology.rank else Numbers(LANES, ROWS)
            return produce(stream, source, cfg.in_flight)
        shuffle = shuffle_of(remote_chunks(stream), topology.rank, topology.num_consumers, steps=10**6)
        for step in range(10**6):
            if who == topology.rank and step == 5:
                raise stream.control.tell(topology.rank, DataError("no room left"))
            shuffle.draw(step)

    def told():
        try:
            live()
        except DataError as error:
            raise stream.control.tell(topology.rank, error) from None

    return ended(told)


@pytest.mark.parametrize(
    "who,reason", [(0, "rank 0 failed: no room left"), (2, "rank 2 failed: shard 7 is damaged")]
)
def test_a_failure_is_told_to_all(who, reason):
    # A rank of the tests lives on with its connections open, so a send to it ends by the groups' timeout.
    cfg = TopologyConfig(producers=2, dp=2, timeout_s=3.0)
    results = run_ranks(one_fails, WORLD, cfg, who, timeout_s=40)
    others = [result for rank, result in enumerate(results) if rank != who]
    # Consumers wait for chunks, producers for credits, and none of them for its timeout of 30 s.
    assert [error for error, _, _ in others] == [f"{reason} (host {socket.gethostname()})"] * 3
    assert all(seconds < 10 and threads == [] for _, seconds, threads in others)
