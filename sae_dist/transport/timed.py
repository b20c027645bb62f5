"""Timing of chunks: how long a consumer waits for producers, and how long producers work.

A producer writes `busy/<producer>` to the store: the seconds it has computed, and its chunks. So consumers
learn without a collective how much of the time it waited.
"""

import json
import time
from collections.abc import Iterator
from functools import partial

from sae_dist.core.types import ActivationChunk, ChunkSource, Position
from sae_dist.distributed.control import Control

TELL_EVERY_S = 0.1


class Timed:
    """A `ChunkSource` that counts the seconds spent in pulling chunks, and the chunks pulled.

    If the source computes, these are seconds of work; if its chunks come from another rank, seconds of
    waiting.
    """

    def __init__(self, source: ChunkSource):
        self.source, self.width = source, source.width
        self.seconds, self.chunks = 0.0, 0
        self.told = float("-inf")

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane, as `ChunkSource.open`, and time each pull."""
        # Not a generator, which would keep the last chunk of each lane alive.
        return map(self._counted, iter(partial(self._next, self.source.open(lane, start)), None))

    def _next(self, chunks: Iterator[ActivationChunk]) -> ActivationChunk | None:
        before = time.monotonic()
        chunk = next(chunks, None)
        self.seconds += time.monotonic() - before
        return chunk

    def _counted(self, chunk: ActivationChunk | None) -> ActivationChunk:
        assert chunk is not None
        self.chunks += 1
        return chunk

    def tell(self, control: Control, producer: int) -> None:
        """Write seconds and chunks to the store for the consumers, at most every TELL_EVERY_S."""
        now = time.monotonic()
        if now - self.told >= TELL_EVERY_S:
            self.told = now
            control.set(f"busy/{producer}", json.dumps([self.seconds, self.chunks]))


def work_of_producers(control: Control, producers: int) -> tuple[float, int] | None:
    """Return (seconds computed, chunks), summed over producers; None: one has not reported yet."""
    keys = [f"busy/{producer}" for producer in range(producers)]
    if not all(control.check(key) for key in keys):
        return None
    told = [json.loads(control.get(key)) for key in keys]
    return sum(seconds for seconds, _ in told), sum(chunks for _, chunks in told)
