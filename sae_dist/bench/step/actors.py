"""The processes of a step benchmark: each holds one contestant, and answers while all others sleep.

Memory: a contestant keeps its dictionary while all of them fit. Before one steps, its need (the most that it
took before; the first time a guess from the shape) and what the others hold must fit into the device. Until
they do, the largest of the others give their memory back; they are made anew at their next turn. A contestant
that runs out of memory among others is tried once more with the device to itself.
"""

import json
import os
import select
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import Any, BinaryIO

from sae_dist.bench.contestant import JOB, LOG, TrialFailed, ended_with_us, last_line
from sae_dist.bench.step.plan import DEAD_SHARE, Shape, StepContestant, StepPlan, to_drop
from sae_dist.core.files import write_json

ROOM = 0.9
"""Share of a device's memory that is used; a GPU's libraries take a part of each process's own."""
PATIENCE_S = 3600.0


class NoMemory(TrialFailed):
    """A contestant had too little memory."""


class Actor:
    """The process of one contestant. `held`, `need`: its bytes while it waits, and while it steps."""

    def __init__(
        self, contestant: StepContestant, plan: StepPlan, ends: ExitStack, patience_s: float = PATIENCE_S
    ):
        self.contestant, self.plan, self.ends, self.patience_s = contestant, plan, ends, patience_s
        self.process: subprocess.Popen | None = None
        self.folder = plan.folder / "step" / contestant.name
        self.answers: BinaryIO | None = None
        self.buffer = b""
        self.shape: Shape | None = None
        self.held = 0
        self.need: dict[Shape, int] = {}

    def start(self) -> None:
        """Start the process; it imports its libraries meanwhile.

        Raises:
            TrialFailed: its peer has no environment.
        """
        if self.process:
            return
        contestant = self.contestant
        words = contestant.command(self.plan.folder, self.plan.peer_python)
        self.folder.mkdir(parents=True, exist_ok=True)
        job, (reading, writing) = self.folder / JOB, os.pipe()
        about = {"device": self.plan.device, "variant": contestant.variant, "answers": writing}
        write_json(job, about)
        with open(self.folder / LOG, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*words, str(job)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                env=contestant.environment(),
            )
        os.close(writing)
        self.answers, self.buffer = os.fdopen(reading, "rb"), b""
        self.ends.enter_context(ended_with_us(self.process))

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask a question and return the answer.

        Raises:
            NoMemory: it ran out of memory, or was killed, as the kernel does then.
            TrialFailed: it failed, or did not answer in time.
        """
        self.start()
        assert self.process and self.process.stdin
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            reply = json.loads(self._line())
        except BrokenPipeError:
            raise self._ended() from None
        if "error" in reply:
            self.shape, self.held = None, 0
            raise (NoMemory if reply.get("memory") else TrialFailed)(reply["error"])
        self.held = reply.get("held", self.held)
        return reply

    def make(self, shape: Shape) -> dict[str, Any]:
        """Make its dictionary, optimizer and batch."""
        reply = self.ask(do="make", dead_share=DEAD_SHARE, **asdict(shape))
        self.shape = shape
        return reply

    def drop(self) -> None:
        """Give the memory back. A process that fails at that has ended, and starts anew at its next turn."""
        if self.shape:
            self.shape = None
            with suppress(TrialFailed):
                self.ask(do="drop")

    def _line(self) -> bytes:
        assert self.answers
        until = time.monotonic() + self.patience_s
        while b"\n" not in self.buffer:
            ready = select.select([self.answers], [], [], max(until - time.monotonic(), 0))[0]
            part = os.read(self.answers.fileno(), 65536) if ready else b""
            if not part:
                raise self._ended() if ready else self._silent()
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def _silent(self) -> TrialFailed:
        self._forget()
        return TrialFailed(f"no answer within {self.patience_s:.0f} s")

    def _ended(self) -> TrialFailed:
        code = self._forget()
        if code == -9:
            return NoMemory("killed by signal 9, as a machine without memory does")
        return TrialFailed(last_line(self.folder / LOG) or f"exit code {code}, and not a word")

    def _forget(self) -> int:
        """Close what is left of the process and return its exit code; the next question starts another."""
        assert self.process and self.answers
        self.answers.close()
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process, self.shape, self.held = None, None, 0
        return code


class Stage:
    """The contestants that share one device."""

    def __init__(self, actors: dict[str, Actor]):
        self.actors, self.room = actors, 0

    def ready(self, name: str, shape: Shape) -> dict[str, Any] | None:
        """Make a contestant unless it is made, and room for its next step; return the answer if made now.

        Raises:
            TrialFailed: see `Actor.ask`.
        """
        actor = self.actors[name]
        need = actor.need.get(shape, actor.contestant.guess(shape))
        others = {other: each.held for other, each in self.actors.items() if other != name and each.shape}
        for other in to_drop(others, need, self.room) if self.room else ():
            self.actors[other].drop()
        if actor.shape == shape:
            return None
        reply = self.alone_if_needed(name, lambda: actor.make(shape))
        self.room = int(ROOM * reply["room"])
        return reply

    def step(self, name: str, shape: Shape, *, steps: int, warm: int, dead: bool) -> dict[str, Any]:
        """Make training steps with one contestant.

        Raises:
            TrialFailed: see `Actor.ask`.
        """
        actor = self.actors[name]

        def act() -> dict[str, Any]:
            if actor.shape != shape:
                actor.make(shape)
            return actor.ask(do="step", steps=steps, warm=warm, dead=dead)

        self.ready(name, shape)
        reply = self.alone_if_needed(name, act)
        actor.need[shape] = max(reply["peak"], actor.need.get(shape, 0))
        return reply

    def alone_if_needed(self, name: str, act: Any) -> dict[str, Any]:
        """Act; if memory runs out, act once more after all others gave theirs back.

        Raises:
            TrialFailed: see `Actor.ask`.
        """
        try:
            return act()
        except NoMemory:
            others = [each for other, each in self.actors.items() if other != name and each.shape]
            if not others:
                raise
            for other in others:
                other.drop()
            return act()

    def clear(self) -> None:
        """Make every contestant give its memory back."""
        for actor in self.actors.values():
            actor.drop()
