"""The step benchmark: training steps of all contestants in turn, each in a process of its own.

At each shape every contestant is made, checked against the definition on the same weights and rows, and
warmed up by one step. Then come rounds with AuxK at rest, then rounds with AuxK acting, all within the limit
of time. No two contestants step at once.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from sae_dist.bench.contestant import TrialFailed
from sae_dist.bench.quality.plan import make_bench_folder
from sae_dist.bench.step.actors import PATIENCE_S, Actor, NoMemory, Stage
from sae_dist.bench.step.plan import CONTESTANTS, MODES, Shape, StepPlan, order, steps_of
from sae_dist.bench.step.table import StepLine, format_step_tables, write_step_tables
from sae_dist.core.text import print_line
from sae_dist.metrics.stolen import Stolen

TOLERANCE = 1e-3
"""Relative, of FVU, between a contestant and the definition."""
SAME_DRAW = 1e-6
REST_SHARE = 0.4
"""Of the time for rounds that goes to those with AuxK at rest, which are shorter."""


def run_step(plan: StepPlan) -> str:
    """Measure; write step.csv, step.md, step.json and step.png; returns the tables.

    Raises:
        ConfigError: the folder cannot be made. A contestant that fails is a line of the table.
    """
    make_bench_folder(plan.folder)
    deadline = None if plan.minutes is None else time.monotonic() + 60 * plan.minutes
    patience_s = PATIENCE_S if plan.minutes is None else 60 * plan.minutes / 3
    lines: list[StepLine] = []
    stolen = Stolen()
    with ExitStack() as ends:
        actors = {name: Actor(CONTESTANTS[name], plan, ends, patience_s) for name in plan.names}
        for actor in actors.values():
            start_actor(actor)
        stage = Stage(actors)
        for number, shape in enumerate(plan.shapes):
            now = time.monotonic()
            left = len(plan.shapes) - number
            until = None if deadline is None else now + (deadline - now) / left
            one = AtShape(plan, stage, shape, until)
            one.measure()
            lines += one.lines.values()
            write_step_tables(plan, lines, stolen.remark())
            stage.clear()
    return format_step_tables(plan, lines, stolen.remark())


def start_actor(actor: Actor) -> None:
    """Start a process; what keeps it from starting is reported again at its first step."""
    try:
        actor.start()
    except TrialFailed as error:
        print_line(f"{actor.contestant.label}: {error}")


@dataclass
class AtShape:
    """The measurement of all contestants at one shape; `lines` by contestant and mode."""

    plan: StepPlan
    stage: Stage
    shape: Shape
    until: float | None
    lines: dict[tuple[str, str], StepLine] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    last_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for mode in MODES:
            for name in self.plan.names:
                self.lines[name, mode] = StepLine(name, self.shape, mode)

    def measure(self) -> None:
        """Measure as the top of this file describes."""
        if self.until is not None and time.monotonic() > self.until:
            return self.leave_out("no time left for this shape; give it --minutes of its own")
        for name in self.plan.names:
            self.make_and_check(name)
        now = time.monotonic()
        self.rounds("rest", None if self.until is None else now + REST_SHARE * (self.until - now))
        self.rounds("aux", self.until)

    def leave_out(self, why: str) -> None:
        for line in self.lines.values():
            line.status, line.why = "left out", why

    def make_and_check(self, name: str) -> None:
        """Make, check and warm up a contestant; one that fails has its line and is not asked again."""
        own = [self.lines[name, mode] for mode in MODES]
        try:
            about = self.stage.ready(name, self.shape) or {}
            for line in own:
                line.about = about
            if not self.reference or not CONTESTANTS[name].floor:
                found = self.stage.actors[name].ask(do="check")
                self.reference = self.reference or found
                for line in own:
                    line.fvu = found["fvu"]
                reason = disagreement(found, self.reference)
                if reason:
                    return self.fail(name, "disagrees", reason)
            self.time(name, "rest", 1, warm=0)
        except TrialFailed as error:
            return self.fail(name, status_of(error), str(error))
        if CONTESTANTS[name].compiled:
            try:
                self.time(name, "aux", 1, warm=0)
            except TrialFailed as error:
                self.fail(name, status_of(error), str(error), "aux")

    def rounds(self, mode: str, until: float | None) -> None:
        """Time all contestants once in each round; at least one round, no more than fit before `until`."""
        for turn in range(self.plan.rounds):
            began = time.monotonic()
            names = [name for name in self.plan.names if not self.lines[name, mode].status]
            for name in order(names, turn):
                self.sample(name, mode, turn)
            took = time.monotonic() - began
            print_line(
                f"{self.shape}, {mode}: round {turn + 1} of {len(names)} contestants took {took:.0f} s"
            )
            if until is not None and time.monotonic() + took > until:
                break

    def sample(self, name: str, mode: str, turn: int) -> None:
        """Time one contestant in one round."""
        line = self.lines[name, mode]
        try:
            # A GPU's memory was given back in between, and is got anew by a step that is not counted.
            warm = 1 if self.plan.device == "cuda" else 0
            reply, line.samples[turn] = self.time(name, mode, steps_of(self.last_s[name]), warm=warm)
            line.peak = max(reply["peak"], line.peak or 0)
            line.dead = reply["dead"]
        except TrialFailed as error:
            self.fail(name, status_of(error), str(error), mode)

    def time(self, name: str, mode: str, steps: int, *, warm: int) -> tuple[dict[str, Any], float]:
        """Make steps; return the answer, and the seconds of one step."""
        reply = self.stage.step(name, self.shape, steps=steps, warm=warm, dead=mode == "aux")
        self.last_s[name] = reply["seconds"] / steps
        return reply, self.last_s[name]

    def fail(self, name: str, status: str, why: str, mode: str | None = None) -> None:
        """Note a failure in one mode, or in all, and make the contestant give its memory back."""
        self.stage.actors[name].drop()
        print_line(f"{self.shape}: {CONTESTANTS[name].label}: {why}")
        for each in [mode] if mode else MODES:
            self.lines[name, each].status, self.lines[name, each].why = status, why


def disagreement(found: dict[str, Any], reference: dict[str, Any]) -> str | None:
    """Return how a contestant's forward differs from the definition; None: it does not."""
    drawn, wanted = found["drawn"], reference["drawn"]
    if abs(drawn - wanted) > SAME_DRAW * max(abs(wanted), 1.0):
        return "its torch draws other random weights from the same seed; give it the torch of the others"
    off = abs(found["fvu"] - reference["fvu"]) / reference["fvu"]
    if not off < TOLERANCE:
        return f"FVU {found['fvu']:.6f} of its forward, {reference['fvu']:.6f} by the definition"
    return None


def status_of(error: TrialFailed) -> str:
    """Return a failure in two words, for the table."""
    return "out of memory" if isinstance(error, NoMemory) else "failed"
