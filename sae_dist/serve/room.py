"""The room of the model: a thread that loads what it needs when first asked, and grants a wish at a time."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.text import class_and_line, print_line

if TYPE_CHECKING:
    from sae_dist.interpret.dictionary import Dictionary
    from sae_dist.interpret.model import LanguageModel

T = TypeVar("T")
LEAVING_S = 10.0
"""How long the end of the program waits for what is being worked on."""


class Busy(Exception):
    """A wish that came while another is worked on."""


class Stopped(Exception):
    """The program ends before a wish is granted."""


@dataclass(frozen=True)
class Bench:
    """The dictionary and the model that wishes need.

    Attributes:
        stopped: the program ends; what takes long looks at it now and then.
    """

    dictionary: Dictionary
    lm: LanguageModel
    stopped: threading.Event


Work = Callable[[Bench], T]


class Room:
    """A thread with a run's dictionary and model, which grants one wish at a time."""

    def __init__(self, where: str, *, closed: str | None = None, trust_remote_code: bool = False):
        """Open no file yet.

        Args:
            where: what `sae_dist.load` takes.
            closed: why there is no model; None: it is loaded when it is first asked for.
        """
        self.where, self.closed = where, closed
        self._trust = trust_remote_code
        self._wishes: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._taken = threading.Lock()
        self._stopped = threading.Event()
        self._bench: Bench | None = None

    @property
    def loaded(self) -> bool:
        """The answer to: is the model in memory?"""
        return self._bench is not None

    async def work(self, wish: Work[T]) -> T:
        """Return what a wish finds.

        Raises:
            Busy: another one is being worked on.
            ConfigError: the model cannot be loaded, or the wish does not fit it.
        """
        if self.closed is not None:
            raise ConfigError(self.closed)
        if not self._taken.acquire(blocking=False):
            raise Busy
        answer: Future[Any] = Future()
        # Released by the thread, also where nobody waits for the answer any more.
        answer.add_done_callback(lambda _: self._taken.release())
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
            self._thread.start()
        self._wishes.put((wish, answer))
        found: T = await asyncio.shield(asyncio.wrap_future(answer))
        return found

    def close(self) -> None:
        """End the thread, which stops what it is at."""
        self._stopped.set()
        if self._thread is not None:
            self._wishes.put(None)
            self._thread.join(LEAVING_S)

    def _serve(self) -> None:
        while (wish := self._wishes.get()) is not None:
            work, answer = wish
            try:
                answer.set_result(work(self._loaded()))
            except (SaeDistError, Stopped) as error:
                answer.set_exception(error)
            except Exception as error:  # a model's own code may raise anything; the pages go on
                print_line(f"sae-dist serve: {class_and_line(error)}")
                answer.set_exception(ConfigError(f"the model failed: {class_and_line(error)}"))

    def _loaded(self) -> Bench:
        if self._bench is None:
            from sae_dist.interpret.load import load
            from sae_dist.interpret.model import model

            try:
                dictionary = load(self.where)
                lm = model(dictionary, trust_remote_code=self._trust)
            except ConfigError as error:
                self.closed = str(error)
                raise
            self._bench = Bench(dictionary, lm, self._stopped)
        return self._bench
