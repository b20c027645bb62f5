"""The producer's sending thread: chunks go out while the next are computed."""

import queue
import threading
from collections import deque

import torch

from sae_dist.core.types import ActivationChunk
from sae_dist.transport.wire import Stream, Transfer


class Sender:
    """Sends chunks in the order they are put, on a thread of its own, each as soon as it has its credit.

    On CUDA it has a stream of its own too, which waits for the forward that made a chunk, and for no later
    one. That path has not been run on a GPU yet.

    Attributes:
        served: for every consumer, whether it has said that it wants no more.
    """

    def __init__(self, stream: Stream, in_flight: int):
        self.stream, self.in_flight = stream, in_flight
        self.served = [False] * stream.topology.num_consumers
        self.sent = 0
        self.failure: Exception | None = None
        self.slots = threading.Semaphore(in_flight)
        self.waiting: queue.SimpleQueue[tuple[int, ActivationChunk | None, torch.cuda.Event | None] | None]
        self.waiting = queue.SimpleQueue()
        self.under_way: deque[Transfer] = deque()
        self.thread = threading.Thread(target=self._run, name="send", daemon=True)
        self.thread.start()

    def put(self, number: int, chunk: ActivationChunk | None) -> None:
        """Hand over a chunk, or None where its lane has ended; waits while `in_flight` wait before it.

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
        """No more will be put."""
        self.waiting.put(None)

    def finish(self) -> int:
        """Wait until everything has gone over; returns how many chunks that were.

        Raises:
            TransportError: see `put`.
        """
        self.thread.join()
        if self.failure:
            raise self.failure
        return self.sent

    def _run(self) -> None:
        """The thread. After a failure it only makes room, for `put` to come through and say so."""
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
        consumer = self.stream.consumer_of(number)
        if self.served[consumer]:
            return
        if not self.stream.credit(number):
            self.served[consumer] = True
            return
        if chunk is not None and computed is not None:
            side = torch.cuda.current_stream(self.stream.device)
            side.wait_event(computed)
            # The rows are of the compute stream, which may not use their memory again before they are sent.
            chunk.rows_RD.record_stream(side)
        self.under_way.append(self.stream.send(number, chunk))
        self.sent += chunk is not None
        while len(self.under_way) > self.in_flight:
            self.stream.finish(self.under_way.popleft())


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for a thread that moves chunks while another computes; None: no CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.set_device(device)
    return torch.cuda.Stream(device)
