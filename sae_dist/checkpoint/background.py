"""A thread that writes checkpoints while training goes on."""

import queue
import threading
from collections.abc import Callable
from typing import Any


class SaveJob:
    """A task of the background thread, which may be waited for."""

    def __init__(self, act: Callable[[], Any]):
        self._act, self._ended = act, threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the task; keep what it raised for `result`."""
        try:
            self._act()
        except BaseException as error:
            self._error = error
        self._ended.set()

    def done(self) -> bool:
        """Return whether the task has ended, well or not."""
        return self._ended.is_set()

    def leave(self, seconds: float) -> None:
        """Wait for the task's end, however it ends, at most so many seconds."""
        self._ended.wait(seconds)

    def result(self) -> None:
        """Wait for the task's end.

        Raises:
            Exception: whatever the task raised.
        """
        self._ended.wait()
        if self._error is not None:
            raise self._error


class Background:
    """A thread that runs jobs one after the other, in the order in which they were given.

    All ranks give the same jobs in the same order, so that their collectives match; these use a process group
    of their own. The thread ends with the process, whatever it is doing.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[SaveJob] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="checkpoints", daemon=True).start()

    def start(self, act: Callable[[], Any]) -> SaveJob:
        """Queue a task; return the job to wait for."""
        job = SaveJob(act)
        self._jobs.put(job)
        return job

    def _serve(self) -> None:
        while True:
            self._jobs.get().run()
