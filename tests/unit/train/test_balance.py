"""Who waited for whom: shares, the proportion that would balance them, and where it is said."""

import time

import pytest
import torch

from sae_dist.config.run import RunConfig
from sae_dist.config.sections import TopologyConfig
from sae_dist.core.place import Place
from sae_dist.distributed.mesh import Topology
from sae_dist.metrics import sinks
from sae_dist.train.balance import Balance, Waits, percent, proportion
from sae_dist.transport.collective import RemoteChunks, Stream, produce
from sae_dist.transport.timed import Timed
from tests.helpers.ranks import run_ranks
from tests.helpers.sources import Numbers

LANES, ROWS, CHUNKS = 4, 8, 40


class Slow(Numbers):
    """Chunks that cost time."""

    def __init__(self, seconds: float):
        super().__init__(LANES, ROWS)
        self.seconds = seconds

    def open(self, lane, start):
        for chunk in super().open(lane, start):
            time.sleep(self.seconds)
            yield chunk


def waits_of(chunk_s: float, step_s: float, producers: int) -> Waits | None:
    """Of a run whose every step takes one chunk of each lane and thinks for `step_s`."""
    cfg = RunConfig(batch=LANES * ROWS, topology=TopologyConfig(producers=producers))
    cfg.shuffle.chunk_rows = ROWS
    rank = torch.distributed.get_rank()
    topology = Topology(cfg.topology, Place(rank, producers + 1, rank, 1), "cpu")
    stream = Stream(
        topology,
        lanes=LANES,
        rows=ROWS,
        width=1,
        dtype=torch.float64,
        device=torch.device("cpu"),
        timeout_s=30.0,
        name=f"balance {chunk_s} {step_s} {producers}",
    )
    if not topology.is_consumer:
        produce(stream, Slow(chunk_s), 2)
        return None
    remote = RemoteChunks(stream, lanes=list(range(LANES)), ahead=1, in_flight=2)
    timed = Timed(remote)
    balance = Balance(cfg, topology, timed, stream)
    lanes = [timed.open(lane, None) for lane in range(LANES)]
    for _ in range(CHUNKS // LANES):
        for lane in lanes:
            next(lane)
        time.sleep(step_s)
        balance.step()
        balance.row(balance.spent())
    remote.close()
    return balance.waits()


def test_a_slow_producer_makes_consumers_wait():
    # Bounds are wide: a busy machine wakes a sleeper late.
    waits = run_ranks(waits_of, 2, 0.02, 0.001, 1)[0]
    assert waits.consumers_waited > 0.5 > waits.producers_waited
    assert 0.02 <= waits.chunk_busy_s < 0.1 and 0.001 <= waits.step_busy_s < 0.08
    assert waits.producers_per_consumer > 1


@pytest.mark.parametrize("producers", [1, 2])
def test_a_slow_consumer_makes_producers_wait(producers):
    waits = run_ranks(waits_of, 1 + producers, 0.002, 0.05, producers)[0]
    assert waits.consumers_waited < 0.4 < waits.producers_waited
    # Four chunks of 2 ms for each step of 50 ms, however many producers share them.
    assert 0.05 < waits.producers_per_consumer < 0.8


def test_proportions_are_small_and_near():
    assert [proportion(r) for r in (1 / 3, 0.35, 0.66, 1.0, 1.5, 4.2, 0.05)] == [
        (1, 3),
        (1, 3),
        (2, 3),
        (1, 1),
        (3, 2),
        (4, 1),
        (1, 20),
    ]
    assert (percent(0.63), percent(0.004), percent(0.0)) == ("63 %", "0.4 %", "0.0 %")


def test_the_line_says_who_waited_and_what_would_help():
    def line(consumers, producers, ratio):
        return Waits(consumers, producers, 0.1, 0.1, ratio).in_words()

    assert line(0.004, 0.63, 1 / 3) == (
        "producers waited 63 % of the time, consumers 0.4 %: 1 producer per 3 consumers would balance them"
    )
    assert line(0.5, 0.0, 2.0).endswith("consumers 50 %: 2 producers per 1 consumer would balance them")
    assert "held up both" in line(0.5, 0.5, 1.0)


def test_the_console_says_once_a_minute_who_waited(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sinks.time, "monotonic", lambda: now[0])
    console = sinks.ConsoleSink(1000, 0)
    for step in range(1, 13):
        now[0] = 10.0 * step
        console.write(
            {"step": step, "tokens": step, "perf/wait_for_chunks_s": 0.1, "perf/wait_for_credit_s": 5.0}
        )
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("waited")]
    assert said == ["waited of the last 60 s: consumers 1.0%, producers 50.0%"] * 2
