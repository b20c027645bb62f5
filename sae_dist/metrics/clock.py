"""The time of a step by phase, measured without waiting for the device.

On a GPU a boundary between phases is a CUDA event, so a phase is its share of the device's own time line:
what the device does, or waits for, between two points of the program. Events are read later, once the device
has passed them; those it has not passed when metrics are flushed count for the next row. Elsewhere the host's
clock is read.

A phase inside another is not counted as time of the outer one: phases never overlap, and add up to the step.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

OTHER = "other"
PHASES = (
    "receive",
    "encode",
    "select",
    "exchange",
    "decode",
    "backward",
    "step",
    "wait",
    "record",
    OTHER,
)
UNDIVIDED = ("wait", "record")
"""Phases that include the exchanges inside them."""


@dataclass
class Phases:
    """Seconds by phase, and the number of steps that they cover."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    steps: int = 0

    def take(self) -> tuple[dict[str, float], int]:
        """Return the seconds and steps since the last call, and start again from zero."""
        found = self.seconds, self.steps
        self.seconds, self.steps = dict.fromkeys(PHASES, 0.0), 0
        return found


@dataclass
class _Mark:
    """A boundary between phases: time from `moment` on is that of `phase` (None: of no phase).

    `begins` marks the beginning of a step.
    """

    moment: Any
    phases: Phases | None
    phase: str | None
    begins: bool


class PhaseClock:
    """A clock of the phases between `begin` and `end` of a step, for one dictionary's `Phases` at a time.

    Attributes:
        profiling: also show the phases by name in torch's profiler.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._spare: list[torch.cuda.Event] = []
        self._marks: deque[_Mark] = deque()
        self._stack: list[str] = []
        self._phases: Phases | None = None
        self.profiling = False

    def begin(self, phases: Phases) -> None:
        """Begin a step, whose time is added to `phases`."""
        self.settle()
        self._phases, self._stack = phases, [OTHER]
        self._mark(begins=True)

    def end(self) -> None:
        """End the step: what follows counts for no phase."""
        self._stack = []
        self._mark()
        self._phases = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase in a `with` block, as `core.types.Clock`; outside of a step nothing is timed."""
        if self._phases is None or self._stack[-1] in UNDIVIDED:
            yield
            return
        self._stack.append(phase)
        self._mark()
        try:
            with torch.profiler.record_function(phase) if self.profiling else nullcontext():
                yield
        finally:
            self._stack.pop()
            self._mark()

    def settle(self) -> None:
        """Add up the times between marks that the device has passed, without waiting for it."""
        while len(self._marks) > 1 and (not self._cuda or self._marks[1].moment.query()):
            mark, until = self._marks.popleft(), self._marks[0]
            if mark.phases is not None and mark.phase is not None:
                mark.phases.seconds[mark.phase] += self._between(mark.moment, until.moment)
                mark.phases.steps += mark.begins
            if self._cuda:
                self._spare.append(mark.moment)

    def _mark(self, begins: bool = False) -> None:
        if self._cuda:
            moment: Any = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._marks.append(_Mark(moment, self._phases, self._stack[-1] if self._stack else None, begins))

    def _between(self, first: Any, last: Any) -> float:
        return first.elapsed_time(last) / 1000 if self._cuda else last - first
