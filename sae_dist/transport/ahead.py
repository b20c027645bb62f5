"""Chunks that are read on the host and used on a GPU: read by a thread ahead of need, and moved by a stream.

The thread reads a lane's next chunk as soon as the one before has been taken, and puts it into pinned memory.
It is moved, as it is, when it is taken: the host does not wait, and the GPU does only if it has nothing else
to do meanwhile, since a lane's chunks are used when its block is complete.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from sae_dist.core.types import ActivationChunk, ChunkSource, Position


class Ahead:
    """A `ChunkSource` whose chunks are those of another one, on a GPU.

    Ids stay on the host. One thread reads for all lanes, so the other source needs no lock.
    """

    def __init__(self, source: ChunkSource, device: torch.device):
        self.source, self.width, self.device = source, source.width, device
        self.reader = ThreadPoolExecutor(1, "read")
        self.stream = torch.cuda.Stream(device)

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane, as `ChunkSource.open`.

        Raises:
            DataError: the other source raised it.
        """
        return self._chunks(self.source.open(lane, start))

    def _chunks(self, chunks: Iterator[ActivationChunk]) -> Iterator[ActivationChunk]:
        reading: Future[ActivationChunk | None] = self.reader.submit(_pinned, chunks)
        while (chunk := reading.result()) is not None:
            reading = self.reader.submit(_pinned, chunks)
            with torch.cuda.stream(self.stream):
                rows_RD = chunk.rows_RD.to(self.device, non_blocking=True)
            used = torch.cuda.current_stream(self.device)
            used.wait_stream(self.stream)
            rows_RD.record_stream(used)
            yield replace(chunk, rows_RD=rows_RD)


def _pinned(chunks: Iterator[ActivationChunk]) -> ActivationChunk | None:
    """Read the next chunk into pinned memory; None: there is none."""
    chunk = next(chunks, None)
    return None if chunk is None else replace(chunk, rows_RD=chunk.rows_RD.pin_memory())
