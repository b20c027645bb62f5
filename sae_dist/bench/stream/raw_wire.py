"""The floor of the transport: the same bytes by bare isend and irecv, in memory that is allocated."""

import time
from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor

from sae_dist.transport.wire import Stream


def move_raw(stream: Stream, tensors: list[Tensor], chunks: int, in_flight: int) -> float | None:
    """Move `tensors` `chunks` times from the producer to the consumer of a stream.

    Returns:
        On the consumer the seconds from the first arrival to the last; None on the producer.
    """
    topology = stream.topology
    group = topology.stream_groups[0, 0]
    pending: deque[list[dist.Work | None]] = deque()
    started = time.monotonic()
    for number in range(chunks):
        if topology.is_consumer:
            pending.append([dist.irecv(each, topology.producer_rank(0), group=group) for each in tensors])
        else:
            pending.append([dist.isend(each, 0, group=group) for each in tensors])
        if topology.is_consumer or len(pending) > in_flight:
            _wait(pending.popleft())
        if number == 0:
            _settle(stream)
            started = time.monotonic()
    while pending:
        _wait(pending.popleft())
    _settle(stream)
    return time.monotonic() - started if topology.is_consumer else None


def meet() -> None:
    """Wait for the other rank."""
    dist.barrier()


def _wait(works: list[dist.Work | None]) -> None:
    for work in works:
        assert work is not None, "both ranks are in the group"
        work.wait()


def _settle(stream: Stream) -> None:
    if stream.device.type == "cuda":
        torch.cuda.synchronize(stream.device)
