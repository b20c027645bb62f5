"""Measures what each test costs: its processor time, that of all processes below it included."""

import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

LIMIT_S = 20.0
SHORT_S = 0.05
"""Shorter phases of a test are taken to have used as much as they lasted: to look costs milliseconds."""
NUM_SHOWN = 25
SUM_S, PRODUCT_S = 0.0065, 0.003
"""What `host_factor` times, on a quiet core of the machines that the limit was chosen on, with AVX-512."""


def host_factor() -> float:
    """Return how many times as long this core takes now as those did, at least 1.

    Others may share the host; and processors without AVX-512 multiply matrices at a third of the rate.
    """
    x = torch.ones(512, 512)
    slower = _seconds(lambda: sum(number for number in range(100_000))) / SUM_S
    slower *= _seconds(lambda: x @ x) / PRODUCT_S
    return max(1.0, math.sqrt(slower))


def _seconds(act: Callable[[], object]) -> float:
    took = []
    for _ in range(5):
        begin_s = time.process_time()
        act()
        took.append(time.process_time() - begin_s)
    return statistics.median(took)


def used_s() -> float:
    """Return the processor seconds of this process and of all below it, those that have ended included.

    A process that its parent left behind unreaped is lost: the sum may fall.
    """
    seconds, below = {}, defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has ended since
                continue
            seconds[int(entry.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            below[int(fields[1])].append(int(entry.name))
    found, todo = 0.0, [os.getpid()]
    while todo:
        pid = todo.pop()
        found += seconds.get(pid, 0.0)
        todo += below[pid]
    return found


class ProcessorTime:
    """A plugin that shows the dearest tests, and fails one that is too dear for a run without `-m long`."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self.before_s = 0.0
        self.seconds: dict[str, list[float]] = {}

    def pytest_collection_finish(self) -> None:
        """Begin with the first test."""
        self.before_s = used_s()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Give a report its processor time, since the report before it."""
        report = yield
        short = call.duration < SHORT_S
        now_s = self.before_s + call.duration if short else used_s()
        report.processor_s = max(now_s - self.before_s, 0.0)
        self.before_s = now_s
        if report.passed and report.processor_s > self.limit_s and not item.get_closest_marker("long"):
            self._refuse(item, report)
        return report

    def _refuse(self, item: pytest.Item, report: Any) -> None:
        """Fail a report whose test is over the limit for more than the host's being busy."""
        factor = host_factor()
        if report.processor_s <= factor * self.limit_s:
            return
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid}: {report.when} took {report.processor_s:.0f} s of processor time, over "
            f"{self.limit_s:.0f} times {factor:.1f}, as the host is slow: make it cheaper, or mark it `long`"
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a report to its test, where all are seen."""
        sums = self.seconds.setdefault(report.nodeid, [0.0, 0.0, 0.0])
        processor_s = getattr(report, "processor_s", 0.0)
        sums[0] += 0.0 if report.when == "call" else processor_s
        sums[1] += processor_s if report.when == "call" else 0.0
        sums[2] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the dearest."""
        if not self.seconds:
            return
        write = terminalreporter.write_line
        total = [sum(column) for column in zip(*self.seconds.values(), strict=True)]
        terminalreporter.section(f"{NUM_SHOWN} slowest tests, in seconds")
        write("processor: set-up  call     wall")
        dearest = sorted(self.seconds.items(), key=lambda test: -test[1][0] - test[1][1])
        for name, (set_up, call, wall) in dearest[:NUM_SHOWN]:
            write(f"{set_up:17.1f} {call:5.1f} {wall:8.1f}  {name}")
        write(f"{total[0]:17.1f} {total[1]:5.1f} {total[2]:8.1f}  all {len(self.seconds)} tests")
