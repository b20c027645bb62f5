"""GPUs, hosts and network of a run, sampled by a thread during training.

Every rank writes its host, process and GPU to the store. On each host the lowest rank samples, and writes the
samples; the first consumer of a group adds up all hosts, for the next row of metrics.
"""

import json
import os
import socket
import threading
import time
from typing import Any, Protocol

import psutil
import torch

from sae_dist.core.errors import TransportError
from sae_dist.core.text import GIB, MIB, print_line
from sae_dist.metrics.nvml import Nvml
from sae_dist.metrics.stolen import share

SUMS = ("power_w", "energy_j", "throttled", "xids")
MAXIMA = ("memory_gib", "temperature_c")


class Store(Protocol):
    """The store of `distributed.control`, as it is used here."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> str: ...

    def check(self, key: str) -> bool: ...


class Host:
    """The CPU, memory and network of this machine, and the memory of the run's processes on it."""

    def __init__(self, pids: list[int]):
        self.processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        psutil.cpu_percent()
        self.times = psutil.cpu_times()
        self.then, self.before = time.monotonic(), self._moved()

    def sample(self) -> dict[str, float]:
        """Measure what `metrics.catalogue` lists under host/{node}/."""
        now, moved = time.monotonic(), self._moved()
        seconds = max(now - self.then, 1e-9)
        sent, received = ((new - old) / seconds / MIB for new, old in zip(moved, self.before, strict=True))
        self.then, self.before = now, moved
        times, self.times = self.times, psutil.cpu_times()
        return {
            "cpu": psutil.cpu_percent() / 100,
            "cpu_stolen": share(times, self.times),
            "memory_gib": psutil.virtual_memory().used / GIB,
            "rss_gib": sum(map(_rss, self.processes)) / GIB,
            "sent_mib_per_s": sent,
            "received_mib_per_s": received,
        }

    def _moved(self) -> tuple[int, int]:
        """Return the bytes sent and received over all interfaces but the loopback."""
        parts = [each for name, each in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        return sum(each.bytes_sent for each in parts), sum(each.bytes_recv for each in parts)


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:  # a rank that has ended
        return 0


class Telemetry:
    """The telemetry thread of one rank; most ranks start no thread.

    Args:
        every_s: seconds between samples.
        rank: of this process, of `world`; local_rank 0 may be its host's reporter.
        collects: whether this rank writes metrics.
    """

    def __init__(
        self,
        every_s: float,
        store: Store,
        *,
        rank: int,
        world: int,
        local_rank: int,
        collects: bool,
        device: torch.device,
    ):
        self.every_s, self.store, self.rank, self.world = every_s, store, rank, world
        self.local_rank, self.collects = local_rank, collects
        self.number, self.row = 0, dict[str, float]()
        self.num_gpus = 0
        self.closed = threading.Event()
        uuid = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
        store.set(f"telemetry/rank/{rank}", json.dumps([socket.gethostname(), os.getpid(), uuid]))
        self.thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        if local_rank == 0 or collects:
            self.thread.start()

    def close(self) -> None:
        """Stop the thread; the last sample is kept."""
        self.closed.set()
        if self.thread.ident is not None:
            self.thread.join(timeout=self.every_s)

    def _run(self) -> None:
        try:
            ranks = self._ranks()
            if ranks is None:
                return
            reporters: list[int] = []
            for rank, (host, _, _) in enumerate(ranks):
                if host not in [ranks[other][0] for other in reporters]:
                    reporters.append(rank)
            mine = [each for each in ranks if each[0] == ranks[self.rank][0]]
            reports = self.rank in reporters
            host, gpus = (Host([pid for _, pid, _ in mine]), self._gpus(mine)) if reports else (None, None)
            self.num_gpus = len({uuid for _, _, uuid in ranks if uuid})
            while reports or self.collects:
                if host is not None:
                    found = {"host": host.sample(), "gpus": gpus.sample() if gpus else {}}
                    self.store.set(f"telemetry/{self.rank}", json.dumps(found))
                if self.collects:
                    self._collect(reporters)
                if self.closed.wait(self.every_s):
                    break
            if gpus:
                gpus.close()
        except TransportError:
            # The store is gone, and with it the run; the thread that trains reports it.
            return

    def _ranks(self) -> list[Any] | None:
        """Wait for host, process and GPU of every rank; None: closed before all were known."""
        keys = [f"telemetry/rank/{rank}" for rank in range(self.world)]
        while not all(self.store.check(key) for key in keys):
            if self.closed.wait(min(self.every_s, 1.0)):
                return None
        return [json.loads(self.store.get(key)) for key in keys]

    def _gpus(self, mine: list[Any]) -> Nvml | None:
        uuids = list(dict.fromkeys(uuid for _, _, uuid in mine if uuid))
        if not uuids:
            return None
        import pynvml

        try:
            return Nvml(pynvml, uuids)
        except pynvml.NVMLError as error:
            print_line(f"telemetry: no numbers of the GPUs of {socket.gethostname()}: {error}")
            return None

    def _collect(self, reporters: list[int]) -> None:
        row: dict[str, float] = {}
        hosts: list[dict[str, float]] = []
        gpus: list[dict[str, float]] = []
        for node, rank in enumerate(reporters):
            if not self.store.check(f"telemetry/{rank}"):
                continue
            found = json.loads(self.store.get(f"telemetry/{rank}"))
            hosts.append(found["host"])
            row |= {f"host/{node}/{key}": value for key, value in found["host"].items()}
            for index, numbers in found["gpus"].items():
                gpus.append(numbers)
                row |= {f"gpu/{node}.{index}/{key}": value for key, value in numbers.items()}
        self.row = row | over_all(hosts, gpus)
        self.number += 1


def over_all(hosts: list[dict[str, float]], gpus: list[dict[str, float]]) -> dict[str, float]:
    """Sum up all hosts and GPUs in the few numbers that a person looks at first."""
    row = {"host/rss_gib": sum(each["rss_gib"] for each in hosts)} if hosts else {}
    if hosts:
        row["host/cpu"] = sum(each["cpu"] for each in hosts) / len(hosts)
    for name in (*SUMS, *MAXIMA, "utilisation"):
        values = [each[name] for each in gpus if name in each]
        if not values:
            continue
        if name in SUMS:
            row[f"gpu/{name}"] = sum(values)
        else:
            row[f"gpu/{name}"] = max(values) if name in MAXIMA else sum(values) / len(values)
    return row
