"""The control plane: short messages through the process group's store, with a limit of time on each.

A TCPStore waits for ever for an answer once the network to its host is cut. So a thread asks, and the caller
waits for that thread no longer than the limit. The first failure of a rank is recorded here, with its reason.
"""

import os
import queue
import re
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from sae_dist.core.errors import ConfigError, SaeDistError, TransportError
from sae_dist.core.text import first_line

FAILED = "failed"
LAST_WORDS_S = 3.0
BEAT_S = 5.0
_all: "weakref.WeakSet[Control]" = weakref.WeakSet()
"""Every `Control` of this process."""


class Control:
    """Short messages among all ranks of a run.

    Args:
        timeout_s: the longest wait for an answer of the store.
        name: keeps the keys of several runs in one world apart.

    Attributes:
        step: returns the training step of this rank, if it trains; for messages about this rank.
    """

    def __init__(self, timeout_s: float, name: str = "run"):
        self.timeout_s = timeout_s
        # A connection of its own: torch holds the default one while it waits for the other side of a new
        # communicator, and signs of life and credits would wait with it.
        default: Any = dist.distributed_c10d._get_default_store()
        self.store = dist.PrefixStore(name, default.clone())
        self.asked: queue.SimpleQueue[tuple[str, tuple[Any, ...], queue.SimpleQueue[Any]] | None] = (
            queue.SimpleQueue()
        )
        self.lost: TransportError | None = None
        self.step: Callable[[], int] | None = None
        self.beats, self.beat_s = 0, min(timeout_s / 8, BEAT_S)
        self.patience_s = timeout_s / 2
        self.ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._serving = threading.Thread(target=self._serve, name="store", daemon=True)
        self._serving.start()
        _all.add(self)

    def close(self) -> None:
        """End the threads, once what was asked is answered, or after `LAST_WORDS_S`.

        A process that ends while one of them is in a call of the store's is aborted (SIGABRT): the
        interpreter takes its threads away, which C++ does not allow there.
        """
        self.ended.set()
        if self._beating is not None:
            self._beating.join(LAST_WORDS_S)
        self.asked.put(None)
        self._serving.join(LAST_WORDS_S)

    def set(self, key: str, value: str) -> None:
        """Write the value of a key."""
        self._ask("set", key, value)

    def get(self, key: str) -> str:
        """Return the value of a key that exists."""
        return self._ask("get", key).decode()

    def check(self, key: str) -> bool:
        """Return whether a key exists."""
        return self._ask("check", [key])

    def delete(self, key: str) -> None:
        """Delete a key and its value."""
        self._ask("delete_key", key)

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts at 0; return its new value."""
        return self._ask("add", key, amount)

    def failure(self) -> str | None:
        """Return which rank failed first and why, in one phrase; None: no rank failed."""
        return self.get(FAILED) if self.check(FAILED) else None

    def start_beating(self, rank: int) -> None:
        """Send a sign of life at intervals, until `ended` is set.

        A rank that waits too long can then tell the rank that stands still from those that wait as well.
        """
        self._beating = threading.Thread(target=self._beat, args=(rank,), name="beat", daemon=True)
        self._beating.start()

    def _beat(self, rank: int) -> None:
        while self.lost is None and not self.ended.wait(self.beat_s if self.beats else 0):
            self.beats += 1
            # Nobody waits for the answer.
            self.asked.put(("set", (f"beat/{rank}", f"{self.beats} {self.place()}"), queue.SimpleQueue()))
        # A rank that has ended is no rank that stands still.
        self.asked.put(("delete_key", (f"beat/{rank}",), queue.SimpleQueue()))

    def place(self) -> str:
        """Return where this process is, as `host a, step 12`."""
        step = f", step {self.step()}" if self.step else ""
        return f"host {socket.gethostname()}{step}"

    def silent(self, rank: int) -> list[str]:
        """List the ranks whose process stands still, each with the host and step of its last sign of life."""
        found = []
        for other in range(dist.get_world_size()):
            if other == rank or not self.check(f"beat/{other}"):
                continue
            count, place = self.get(f"beat/{other}").split(" ", 1)
            if (self.beats - int(count)) * self.beat_s >= self.patience_s:
                found.append(f"rank {other} ({place})")
        return found

    def tell(self, rank: int, error: Exception) -> Exception:
        """Record that this rank failed and why, unless another rank failed before.

        Returns:
            The error to raise here: the other rank's failure, if `error` is only its consequence;
            else `error`, with host and step added.
        """
        waited_s = self.timeout_s
        self.timeout_s = min(self.timeout_s, LAST_WORDS_S)
        lonely = isinstance(error, dist.DistError | TransportError) or "gloo" in str(error)
        if lonely and (silent := self._silent(rank)):
            verb = "shows" if len(silent) == 1 else "show"
            error = TransportError(
                f"{', '.join(silent)} {verb} no sign of life, and rank {rank} waited {waited_s:g} s "
                "(topology.timeout_s) for an answer"
            )
        own = isinstance(error, SaeDistError) and not isinstance(error, ConfigError)
        if own and not re.search(r"^rank \d+ failed: |\(host ", str(error)):
            error.args = (f"{error} ({self.place()})",)
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, SaeDistError):
            reason = f"{type(error).__name__}: {reason}"
        mine = f"rank {rank} failed: {reason[:500]}"
        try:
            first = self._ask("compare_set", FAILED, "", mine).decode()
        except TransportError:
            first = mine  # no rank can be informed any more
        if isinstance(error, SaeDistError):
            return error
        if first != mine:
            return TransportError(first)
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            return TransportError(f"a rank that rank {rank} exchanges data with is gone or silent ({reason})")
        return error

    def _silent(self, rank: int) -> list[str]:
        try:
            return self.silent(rank)
        except TransportError:
            return []

    def _ask(self, operation: str, *arguments: Any) -> Any:
        """Ask the store and return its answer.

        Raises:
            TransportError: it did not answer in time, or its host is gone.
        """
        if self.lost:
            raise self.lost
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.asked.put((operation, arguments, answer))
        host = f"the run's store at {os.environ.get('MASTER_ADDR', 'this process')}"
        try:
            found = answer.get(timeout=self.timeout_s)
        except queue.Empty:
            self.lost = TransportError(
                f"{host} was silent for {self.timeout_s:g} s (topology.timeout_s): that machine, where "
                "rank 0 is, or the network to it is gone"
            )
            raise self.lost from None
        if isinstance(found, Exception):
            first = first_line(found)[:200]
            self.lost = TransportError(
                f"{host} is gone ({first}): rank 0, what started it, or the network to it"
            )
            raise self.lost from None
        return found

    def _serve(self) -> None:
        """Serve questions one after the other, in the thread, until there is None."""
        while (question := self.asked.get()) is not None:
            operation, arguments, answer = question
            try:
                answer.put(getattr(self.store, operation)(*arguments))
            except RuntimeError as error:
                answer.put(error)


def close_all() -> None:
    """Close every `Control` of this process: their threads ask nothing of the store any more."""
    for control in list(_all):
        control.close()
