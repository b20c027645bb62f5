"""What a harvest says of how far it is."""

from types import SimpleNamespace

import pytest

from sae_dist.core.errors import Preempted
from sae_dist.train import harvest


def progress(monkeypatch, rank=0, wanted=False):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(harvest.time, "monotonic", lambda: clock.now)
    beats = []
    gathering = SimpleNamespace(rank=rank, beat=lambda: beats.append(clock.now))
    return harvest.Progress(SimpleNamespace(wanted=wanted), gathering, 100, 1024), clock, beats


def test_a_line_says_how_much_of_all_there_is_and_how_long_the_rest_takes(monkeypatch, capfd):
    said, clock, beats = progress(monkeypatch)
    said.tick(40, False)
    for _ in range(20):
        clock.now += 2.0
        said.tick(1, True)
    # 40 chunks were there before, 16 took 32 s, 44 are left: 88 s.
    assert capfd.readouterr().err == "  rank 0: 57,344 of 102,400 activations, 512/s, ETA 01:28\n"
    assert len(beats) == 21


def test_nothing_is_said_before_something_is_written_nor_by_other_ranks(monkeypatch, capfd):
    said, clock, _ = progress(monkeypatch)
    clock.now += 60
    said.tick(40, False)
    other, clock, _ = progress(monkeypatch, rank=1)
    clock.now += 60
    other.tick(1, True)
    assert capfd.readouterr().err == ""


def test_a_signal_stops_it(monkeypatch):
    said, _, _ = progress(monkeypatch, wanted=True)
    with pytest.raises(Preempted):
        said.tick(1, True)
