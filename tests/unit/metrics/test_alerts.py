"""What a person is told, and how often."""

import time

import pytest

from sae_dist.metrics import alerts as module
from sae_dist.metrics.alerts import Alerts
from sae_dist.metrics.sinks import ConsoleSink, GridConsole


class Heard:
    """Remembers alerts."""

    def __init__(self):
        self.said = []

    def alert(self, title, text):
        self.said.append((title, text))


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def alerts(heard):
    found = Alerts([heard])
    yield found
    found.close()


def row(step, **values):
    return {"step": step, "tokens": step * 10} | {key.replace("__", "/"): v for key, v in values.items()}


def test_dead_latents_that_rise_are_told_once_and_again_when_more_do(alerts, heard, monkeypatch):
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    for step, dead in enumerate((0.3, 0.05, 0.1, 0.16, 0.2, 0.25, 0.28)):
        alerts.write(row(step, latents__dead_fraction=dead))
    assert [title for title, _ in heard.said] == ["dead latents are rising"] * 2
    assert heard.said[0][1].startswith("16.0% of the latents are dead at step 3")
    assert "28.0%" in heard.said[1][1] and "16.0%" in heard.said[1][1]


def test_numbers_that_are_not_finite(alerts, heard):
    alerts.write(row(1, loss__total=float("nan"), loss__fvu=0.5))
    alerts.write(row(2, loss__total=float("inf")))
    assert heard.said == [("numbers are not finite", "loss/total at step 1")], (
        "the same title once in a while"
    )


def test_a_fall_of_speed(alerts, heard):
    for step in range(module.WINDOW):
        alerts.write(row(step, perf__tokens_per_second=1000.0))
    alerts.write(row(99, perf__tokens_per_second=400.0))
    assert not heard.said
    alerts.write(row(100, perf__tokens_per_second=100.0))
    assert heard.said == [("training has become slow", "100 tokens/s at step 100; 1,000 were usual")]


def test_no_row_for_long(alerts, heard, monkeypatch):
    monkeypatch.setattr(module, "STALL_S", 0.05)
    alerts.write(row(7))
    until = time.monotonic() + 5
    while not heard.said and time.monotonic() < until:
        time.sleep(0.01)
    assert heard.said[0][0] == "training stands still" and "after step 7" in heard.said[0][1]


def test_a_throttled_gpu_and_an_xid_error(alerts, heard):
    ok = {"gpu/0.1/throttled": 0.0, "gpu/0.1/clock_event_reasons": 4, "gpu/0.1/xids": 0, "gpu/0.1/xid": 0}
    alerts.write(row(1) | ok)
    assert not heard.said
    hot = {
        "gpu/0.1/throttled": 1.0,
        "gpu/0.1/clock_event_reasons": 0x44,
        "gpu/0.1/xids": 2,
        "gpu/0.1/xid": 79,
    }
    alerts.write(row(2) | hot)
    assert heard.said == [
        ("GPU 0.1 is throttled", "temperature (hardware), at step 2"),
        ("GPU 0.1 reports an error", "XID 79, 2 so far, at step 2"),
    ]


def test_the_console_says_which_dictionary_of_a_grid(capsys):
    console = GridConsole(ConsoleSink(100, 0))
    alerts = Alerts([console], "k=32")
    alerts.write(row(1, loss__fvu=float("nan")))
    alerts.close()
    assert "alert: numbers are not finite: k=32: loss/fvu at step 1" in capsys.readouterr().err


def test_rows_that_are_repeated_are_told_above_one_in_a_hundred(alerts, heard):
    alerts.write(row(100, stream__repeated_rows=20.0, stream__read_rows=2000.0))
    assert heard.said == []
    alerts.write(row(101, stream__repeated_rows=300.0, stream__read_rows=2000.0))
    ((title, text),) = heard.said
    assert title == "activations are repeated" and "15.0% of the activations" in text
