"""The sending thread of a producer: chunks are sent while the next ones are computed."""

import queue
import threading
from collections import deque

import torch

from sae_dist.core.types import ActivationChunk
from sae_dist.transport.wire import NEVER, Stream, Transfer


class Sender:
    """A thread that sends chunks in the order they are put, each as soon as it has its credit.

    On CUDA it has a stream of its own too, which waits for the forward that made a chunk, and for no later
    one. That path has not been run on a GPU yet.

    Args:
        firsts: by lane, for each group of consumers the number of its first chunk of the lane: after a
            resume groups may be at different steps.

    Attributes:
        served: for every consumer, whether it wants no more chunks.
    """

    def __init__(self, stream: Stream, in_flight: int, firsts: dict[int, list[int]]):
        self.stream, self.in_flight, self.firsts = stream, in_flight, firsts
        self.served = [False] * stream.topology.num_groups * stream.topology.num_consumers
        for lane, each in firsts.items():
            for group, first in enumerate(each):
                self.served[stream.topology.consumer_rank(lane, group)] |= first >= NEVER
        self.sent = 0
        self.failure: Exception | None = None
        self.slots = threading.Semaphore(in_flight)
        self.waiting: queue.SimpleQueue[tuple[int, ActivationChunk | None, torch.cuda.Event | None] | None]
        self.waiting = queue.SimpleQueue()
        self.under_way: deque[Transfer] = deque()
        self.thread = threading.Thread(target=self._run, name="send", daemon=True)
        self.thread.start()

    def put(self, number: int, chunk: ActivationChunk | None) -> None:
        """Queue a chunk, or None if its lane has ended; block while `in_flight` others are queued.

        Raises:
            TransportError: an earlier one could not be sent.
        """
        self.slots.acquire()
        if self.failure:
            raise self.failure
        computed = None
        if chunk is not None and chunk.rows_RD.is_cuda:
            computed = torch.cuda.Event()
            computed.record()
        self.waiting.put((number, chunk, computed))

    def end(self) -> None:
        """Mark the end: no more chunks will be put."""
        self.waiting.put(None)

    def finish(self) -> int:
        """Wait until everything is sent; return the number of chunks.

        Raises:
            TransportError: see `put`.
        """
        self.thread.join()
        if self.failure:
            raise self.failure
        return self.sent

    def _run(self) -> None:
        """Send in the thread; after a failure only free the slots, so that `put` returns and raises it."""
        with torch.cuda.stream(side_stream(self.stream.device)):
            while (item := self.waiting.get()) is not None:
                self._attempt(item)
            try:
                while self.under_way and not self.failure:
                    self.stream.finish(self.under_way.popleft())
            except Exception as error:
                self.failure = error

    def _attempt(self, item: tuple[int, ActivationChunk | None, torch.cuda.Event | None]) -> None:
        try:
            if not self.failure:
                self._send(*item)
        except Exception as error:
            self.failure = error
        finally:
            self.slots.release()

    def _send(self, number: int, chunk: ActivationChunk | None, computed: torch.cuda.Event | None) -> None:
        wanted = [group for group in range(self.stream.topology.num_groups) if self._wanted(number, group)]
        if wanted and chunk is not None and computed is not None:
            side = torch.cuda.current_stream(self.stream.device)
            side.wait_event(computed)
            # The rows belong to the compute stream, which must not reuse their memory before they are sent.
            chunk.rows_RD.record_stream(side)
        for group in wanted:
            self.under_way.append(self.stream.send(number, chunk, group))
        self.sent += bool(wanted) and chunk is not None
        while len(self.under_way) > self.in_flight * len(self.firsts[number % self.stream.lanes]):
            self.stream.finish(self.under_way.popleft())

    def _wanted(self, number: int, group: int) -> bool:
        """Wait for a group's answer about a chunk, if the chunk is for it; return whether to send it."""
        consumer = self.stream.consumer_of(number, group)
        index, lane = divmod(number, self.stream.lanes)
        if self.served[consumer] or index < self.firsts[lane][group]:
            return False
        if not self.stream.credit(number, group):
            self.served[consumer] = True
        return not self.served[consumer]


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a CUDA stream for a thread that moves chunks while another computes; None: no CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.set_device(device)
    return torch.cuda.Stream(device)
