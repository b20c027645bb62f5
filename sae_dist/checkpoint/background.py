"""One thread that writes checkpoints while training goes on."""

import queue
import threading
from collections.abc import Callable
from typing import Any


class Job:
    """Something that is being done."""

    def __init__(self, act: Callable[[], Any]):
        self._act, self._ended = act, threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, and keep what it raised for whoever asks."""
        try:
            self._act()
        except BaseException as error:
            self._error = error
        self._ended.set()

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._ended.is_set()

    def leave(self, seconds: float) -> None:
        """Wait for its end, however it ends, but not for long."""
        self._ended.wait(seconds)

    def result(self) -> None:
        """Wait for its end.

        Raises:
            Exception: what it raised.
        """
        self._ended.wait()
        if self._error is not None:
            raise self._error


class Background:
    """Does jobs one after the other, in the order in which they were given.

    All ranks give the same jobs in the same order, so that their collectives meet; these go over a process
    group that nothing else uses. The thread ends with the process, whatever it is doing.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="checkpoints", daemon=True).start()

    def start(self, act: Callable[[], Any]) -> Job:
        """Have something done."""
        job = Job(act)
        self._jobs.put(job)
        return job

    def _serve(self) -> None:
        while True:
            self._jobs.get().run()
