"""Phases of a step: what is within what, on the host's clock and on a device's events."""

import pytest
import torch

from sae_dist.metrics import clock as module
from sae_dist.metrics.clock import PHASES, PhaseClock, Phases


class Ticks:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch):
    found = Ticks()
    monkeypatch.setattr(module, "time", found)
    return found


def step(clock, ticks, phases):
    """A step of 1 + 2 + 4 + 8 + 16 seconds."""
    clock.begin(phases)
    ticks.now += 1
    with clock("encode"):
        ticks.now += 2
        with clock("exchange"):
            ticks.now += 4
        ticks.now += 8
    with clock("record"), clock("exchange"):
        ticks.now += 16
    clock.end()


def test_a_phase_within_another_takes_its_time_away_from_that(ticks):
    clock, phases = PhaseClock(torch.device("cpu")), Phases()
    for _ in range(3):
        step(clock, ticks, phases)
        ticks.now += 100  # between two steps: nobody's
    clock.settle()
    seconds, steps = phases.take()
    assert steps == 3
    assert {name: value for name, value in seconds.items() if value} == {
        "other": 3.0,
        "encode": 30.0,
        "exchange": 12.0,
        "record": 48.0,
    }
    assert phases.take() == (dict.fromkeys(PHASES, 0.0), 0)


def test_time_goes_to_the_dictionary_whose_step_it_is(ticks):
    clock, one, other = PhaseClock(torch.device("cpu")), Phases(), Phases()
    step(clock, ticks, one)
    step(clock, ticks, other)
    step(clock, ticks, other)
    clock.settle()
    assert (one.seconds["exchange"], one.steps) == (4.0, 1)
    assert (other.seconds["exchange"], other.steps) == (8.0, 2)


def test_outside_of_a_step_nothing_is_timed(ticks):
    clock = PhaseClock(torch.device("cpu"))
    with clock("exchange"):
        ticks.now += 1
    clock.settle()
    assert not clock._marks


def test_a_phase_that_fails_ends(ticks):
    clock, phases = PhaseClock(torch.device("cpu")), Phases()
    clock.begin(phases)
    with pytest.raises(ValueError), clock("encode"):
        ticks.now += 1
        raise ValueError
    ticks.now += 2
    clock.end()
    clock.settle()
    assert phases.seconds["encode"] == 1.0 and phases.seconds["other"] == 2.0


class FakeEvent:
    """In place of torch.cuda.Event: recorded at a place of a queue, passed when the device comes there."""

    queue, device_at, made = 0, 0, 0

    def __init__(self, enable_timing: bool):
        assert enable_timing
        FakeEvent.made += 1

    def record(self):
        self.place, FakeEvent.queue = FakeEvent.queue, FakeEvent.queue + 1

    def query(self) -> bool:
        return self.place < FakeEvent.device_at

    def elapsed_time(self, other: "FakeEvent") -> float:
        assert self.query() and other.query(), "reading an event that the device has not passed would wait"
        return 1000.0 * (other.place - self.place)


def test_events_that_the_device_has_not_passed_wait_for_the_next_row(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    clock, phases = PhaseClock(torch.device("cuda")), Phases()

    def run() -> None:
        clock.begin(phases)
        with clock("encode"):
            pass
        clock.end()

    run()
    run()
    clock.settle()
    assert phases.take() == (dict.fromkeys(PHASES, 0.0), 0)
    FakeEvent.device_at = 6  # marks of a step: begin, encode, end of encode, end
    clock.settle()
    seconds, steps = phases.take()
    assert steps == 2 and seconds["encode"] == 1.0 and seconds["other"] == 3.0
    FakeEvent.device_at = FakeEvent.queue
    clock.settle()
    assert phases.take()[0]["encode"] == 1.0
    before = FakeEvent.made
    run()
    assert FakeEvent.made == before, "events are used again"
