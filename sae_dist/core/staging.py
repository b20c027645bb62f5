"""Copies between a GPU and ordinary memory of the host, through a pinned buffer of fixed size.

Only pinned memory is copied at the full rate of the bus. But torch's allocator of pinned memory rounds each
block up to a power of two, which for copies of large tensors is up to twice what they need.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

STAGING_BYTES = 2**28


class Staging:
    """A pinned buffer in two halves: while one is filled by the GPU, the other is emptied by the host."""

    def __init__(self, num_bytes: int = STAGING_BYTES):
        self.halves = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).chunk(2)

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Copy each source on the GPU to its contiguous target on the host; return when all is there."""
        filling: deque[tuple[torch.cuda.Event, Tensor, Tensor]] = deque()
        for number, (source, target) in enumerate(self._pieces(pairs)):
            if len(filling) == len(self.halves):
                _empty(*filling.popleft())
            half = self.halves[number % len(self.halves)][: len(source)]
            half.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            filling.append((done, half, target))
        while filling:
            _empty(*filling.popleft())

    def copy_back(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Copy each source on the host to its contiguous target on the GPU, whose stream then has them."""
        read: deque[torch.cuda.Event] = deque()
        for number, (source, target) in enumerate(self._pieces(pairs)):
            if len(read) == len(self.halves):
                read.popleft().synchronize()
            half = self.halves[number % len(self.halves)][: len(source)]
            half.copy_(source)
            target.copy_(half, non_blocking=True)
            read.append(torch.cuda.Event())
            read[-1].record()
        while read:
            read.popleft().synchronize()

    def _pieces(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield sources and targets as bytes, in pieces that fit a half."""
        for source, target in pairs:
            flat = (each.detach().reshape(-1).view(torch.uint8) for each in (source, target))
            yield from zip(*(each.split(len(self.halves[0])) for each in flat), strict=True)


def _empty(done: torch.cuda.Event, half: Tensor, target: Tensor) -> None:
    done.synchronize()
    target.copy_(half)
