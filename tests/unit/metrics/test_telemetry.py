"""The thread that samples hosts and GPUs: who reports, what the rank that writes gets."""

import json
import os
import socket
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from sae_dist.core.errors import TransportError
from sae_dist.metrics.catalogue import known
from sae_dist.metrics.telemetry import Telemetry
from tests.unit.metrics.test_nvml import FakeNvml

CPU = torch.device("cpu")


class Store:
    """A store in this process."""

    def __init__(self):
        self.kept: dict[str, str] = {}

    def set(self, key, value):
        self.kept[key] = value

    def get(self, key):
        return self.kept[key]

    def check(self, key):
        return key in self.kept


def start(store, rank=0, world=1, local_rank=0, collects=True, device=CPU):
    return Telemetry(
        0.02, store, rank=rank, world=world, local_rank=local_rank, collects=collects, device=device
    )


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_host_without_a_gpu():
    telemetry = start(Store())
    wait_for(lambda: telemetry.number >= 2)
    telemetry.close()
    assert not telemetry.thread.is_alive()
    row = telemetry.row
    assert {"host/cpu", "host/rss_gib", "host/0/memory_gib", "host/0/sent_mib_per_s"} <= set(row)
    assert all(map(known, row)) and not any(name.startswith("gpu/") for name in row)
    assert 0.01 < row["host/rss_gib"] < 100 and 0 <= row["host/cpu"] <= 1


def test_two_hosts_and_a_rank_that_has_no_part_in_it():
    """Rank 1 shares rank 0's host; rank 2 is elsewhere and has reported."""
    store = Store()
    store.set("telemetry/rank/2", json.dumps(["elsewhere", 1, None]))
    there = {"cpu": 0.5, "memory_gib": 7.0, "rss_gib": 3.0, "sent_mib_per_s": 1.0, "received_mib_per_s": 2.0}
    store.set("telemetry/2", json.dumps({"host": there, "gpus": {}}))
    first = start(store, world=3)
    assert first.number == 0, "not all ranks have told where they are"
    second = start(store, rank=1, world=3, local_rank=1, collects=False)
    assert second.thread.ident is None
    wait_for(lambda: first.number >= 1)
    first.close()
    assert json.loads(store.get("telemetry/rank/1")) == [socket.gethostname(), os.getpid(), None]
    assert "telemetry/1" not in store.kept
    assert first.row["host/1/rss_gib"] == 3.0 and all(map(known, first.row))
    assert first.row["host/rss_gib"] == pytest.approx(first.row["host/0/rss_gib"] + 3.0)


def test_gpus_by_the_uuids_of_the_ranks(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    properties = {0: SimpleNamespace(uuid="a"), 1: SimpleNamespace(uuid="b")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties[device.index])
    store = Store()
    second = start(store, rank=1, world=2, local_rank=1, collects=False, device=torch.device("cuda", 1))
    first = start(store, world=2, device=torch.device("cuda", 0))
    wait_for(lambda: first.number >= 2)
    first.close()
    second.close()
    row = first.row
    assert first.num_gpus == 2 and not fake.open
    assert row["gpu/power_w"] == 700.0 and row["gpu/0.5/power_w"] == 400.0
    assert row["gpu/utilisation"] == 0.8 and row["gpu/temperature_c"] == 61 and row["gpu/throttled"] == 0
    assert all(map(known, row))


def test_a_machine_without_a_driver_says_so_once(monkeypatch, capsys):
    class NoDriver(FakeNvml):
        def nvmlInit(self):
            raise FakeNvml.NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", NoDriver())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a"))
    telemetry = start(Store(), device=torch.device("cuda", 0))
    wait_for(lambda: telemetry.number >= 2)
    telemetry.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("telemetry: no numbers of the GPUs of")
    assert "Driver Not Loaded" in said[0] and "host/cpu" in telemetry.row


def test_a_store_that_is_gone_ends_the_thread():
    store = Store()
    telemetry = start(store)
    wait_for(lambda: telemetry.number >= 1)

    def gone(*_):
        raise TransportError("gone")

    store.set = gone
    wait_for(lambda: not telemetry.thread.is_alive())
