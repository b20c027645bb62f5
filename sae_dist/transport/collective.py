"""Chunks from producer ranks to consumer ranks over gloo or NCCL: none is dropped, and every wait ends.

`wire.py` describes the protocol. A producer computes on one thread and sends on another, so the LLM goes on
while credits are awaited and chunks are on the wire; a consumer receives on a thread of its own, and so
trains meanwhile. Both ends are bounded: neither gets further ahead than it has room for.

On CUDA each thread has a stream of its own, with events between them; that has not been run on a GPU yet.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator

import torch

from sae_dist.core.errors import TransportError
from sae_dist.core.types import ActivationChunk, ChunkSource, Position
from sae_dist.transport.sender import Sender, side_stream
from sae_dist.transport.timed import Timed
from sae_dist.transport.wire import NEVER, Stream, Transfer

LOOK_S = 1.0
PATIENCE = 1.5
"""How many times `topology.timeout_s` the main thread waits for the thread that receives."""


def produce(stream: Stream, source: ChunkSource, in_flight: int) -> int:
    """Compute chunks on a producer rank and send them until every consumer has enough.

    In a group that computes its chunks together, every rank runs this loop; only the first rank sends.

    Args:
        in_flight: chunks under way, and as many computed that wait for their credit.

    Returns:
        The number of chunks that the group sent.
    """
    topology, me = stream.topology, stream.topology.producer_index
    lanes = topology.lanes_of_producer(me, stream.lanes)
    starts = {lane: stream.starts(lane) for lane in lanes}
    firsts = {lane: [first_chunk(start) for start in starts[lane]] for lane in lanes}
    index = {lane: min(firsts[lane]) for lane in lanes}
    timed = Timed(source)
    chunks = {lane: timed.open(lane, min(starts[lane], key=first_chunk)) for lane in lanes}
    sender = Sender(stream, in_flight, firsts) if topology.is_sender else None
    try:
        while lanes := _still_wanted(lanes, stream, sender):
            lane = min(lanes, key=lambda v: (index[v], v))
            chunk = next(chunks[lane], None)
            if sender:
                timed.tell(stream.control, me)
                sender.put(index[lane] * stream.lanes + lane, chunk)
            if chunk is None:
                lanes.remove(lane)
            index[lane] += 1
    finally:
        if sender:
            sender.end()
    sent = torch.tensor([sender.finish() if sender else 0])
    return int(topology.team.max(sent) if topology.team else sent)


def first_chunk(start: Position | None) -> int:
    """Return the number, within its lane, of the chunk that begins at a position (None: 0)."""
    return (start or {}).get("chunk", 0)


def _still_wanted(lanes: list[int], stream: Stream, sender: Sender | None) -> list[int]:
    """Return the lanes of which a consumer may want more, as the sender of the group knows."""
    topology = stream.topology
    groups = range(topology.num_groups)
    served = sender.served if sender else [False] * len(groups) * topology.num_consumers
    if topology.team:
        served = topology.team.max(torch.tensor(served, dtype=torch.int64)).bool().tolist()
    return [v for v in lanes if not all(served[topology.consumer_rank(v, group)] for group in groups)]


class RemoteChunks:
    """A `ChunkSource` on a consumer, whose chunks arrive from producers ahead of need.

    One thread receives in ascending order of chunk number, up to `ahead` chunks per lane beyond those
    pulled: enough that lanes, which differ by less than two groups, never wait for each other.

    Args:
        in_flight: chunks that each producer may send ahead of the one being received. So no producer waits
            for its credit until another has sent, however many there are.
    """

    def __init__(self, stream: Stream, *, lanes: list[int], ahead: int, in_flight: int):
        self.stream, self.lanes, self.width = stream, lanes, stream.width
        self.in_flight = in_flight * stream.topology.num_producers
        # Groups in step need the credits of a whole round before they compute it.
        self.at_least = stream.topology.num_producers if stream.topology.in_step else 1
        self.room = threading.Semaphore(ahead * len(lanes) + self.in_flight)
        self.arrived: dict[int, queue.Queue[ActivationChunk | Exception | None]] = {
            lane: queue.Queue() for lane in lanes
        }
        self.index: dict[int, int] = {}
        self.open_lanes = list(lanes)
        self.closing = threading.Event()
        self.granted: deque[int] = deque()
        self.arriving: deque[Transfer] = deque()
        self.failure: Exception | None = None
        self.arrivals = 0
        self.thread = threading.Thread(target=self._run, name="receive", daemon=True)

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Open a lane, as `ChunkSource.open`; all lanes must be opened before the first chunk is pulled."""
        self.index[lane] = first_chunk(start)
        self.stream.tell_start(lane, start)
        return self._chunks(lane)

    def _chunks(self, lane: int) -> Iterator[ActivationChunk]:
        if self.thread.ident is None:
            assert len(self.index) == len(self.lanes), "all lanes are opened before any is read"
            self.thread.start()
        while True:
            chunk = self._arrived(lane)
            if isinstance(chunk, Exception):
                raise chunk
            if chunk is None:
                return
            self.room.release()
            if chunk.rows_RD.is_cuda:
                # Its memory belongs to the receiving stream, which must not reuse it before it is read here.
                chunk.rows_RD.record_stream(torch.cuda.current_stream(chunk.rows_RD.device))
            yield chunk

    def _arrived(self, lane: int) -> ActivationChunk | Exception | None:
        """Wait for a lane's next chunk, its end, or the failure of the thread that receives.

        Raises:
            TransportError: a rank failed, or nothing at all came for a time in which that thread, whose own
                waits are shorter, would have said so.
        """
        arrivals, limit_s = self.arrivals, PATIENCE * self.stream.timeout_s
        until = time.monotonic() + limit_s
        while True:
            try:
                return self.arrived[lane].get(timeout=LOOK_S)
            except queue.Empty:
                self.stream.look_out()
            if arrivals != self.arrivals:
                arrivals, until = self.arrivals, time.monotonic() + limit_s
            elif time.monotonic() > until:
                raise TransportError(
                    f"the thread that receives chunks stands still: none came for {limit_s:g} s, in a wait "
                    f"for one of lane {lane}"
                )

    def close(self) -> None:
        """Tell the producers to stop, and receive the chunks that were already granted.

        Raises:
            TransportError: a producer was silent or failed before it had sent them.
        """
        self.closing.set()
        self.room.release()
        if self.thread.ident is None:
            # Nothing was ever read: this run was resumed at its last step.
            for lane in self.open_lanes:
                if lane not in self.index:
                    self.open(lane, {"chunk": NEVER})
            self._stop()
            return
        self.thread.join()
        if self.failure:
            raise self.failure

    def _run(self) -> None:
        """Receive until the end, in the thread; a failure is passed on to every lane."""
        try:
            with torch.cuda.stream(side_stream(self.stream.device)):
                self._receive()
        except Exception as error:
            self.failure = error
            for lane in self.lanes:
                self.arrived[lane].put(error)

    def _receive(self) -> None:
        """Grant credits up to `in_flight` ahead, receive, and sort the chunks into lanes."""
        stopped = False
        while self.granted or self.arriving or self._wants_more():
            self._grant_ahead()
            if not stopped and not self._wants_more():
                # Stop before receiving the rest: it may share a round with chunks that are no longer wanted.
                self._stop()
                stopped = True
            self._begin_to_receive()
            if self.arriving:
                self._take_in(self.arriving.popleft())
        if not stopped:
            self._stop()

    def _wants_more(self) -> bool:
        return bool(self.open_lanes) and not self.closing.is_set()

    def _grant_ahead(self) -> None:
        """Grant as many credits as there is room for; wait for room only if there is nothing else to do."""
        while self._wants_more():
            # Not every chunk granted may come: a lane may have ended since.
            coming = sum(number % self.stream.lanes in self.open_lanes for number in self.granted)
            if coming + len(self.arriving) >= self.in_flight:
                return
            if not self.room.acquire(blocking=not self.arriving and coming < self.at_least):
                return
            if not self.closing.is_set():
                self.granted.append(self._grant("go"))

    def _stop(self) -> None:
        """Send every lane that has not ended a stop in place of its next credit."""
        for _ in self.open_lanes:
            self._grant("stop")

    def _grant(self, word: str) -> int:
        lane = min(self.open_lanes, key=lambda v: (self.index[v], v))
        number = self.index[lane] * self.stream.lanes + lane
        self.index[lane] += 1
        self.stream.grant(number, word)
        return number

    def _begin_to_receive(self) -> None:
        """Post a receive for every chunk that its producer is sending; wait for the first to be sent."""
        while self.granted:
            lane = self.granted[0] % self.stream.lanes
            if lane not in self.open_lanes:
                self.granted.popleft()  # granted before the lane was known to have ended
                self.room.release()
            elif not self.arriving or self.stream.is_sent(self.granted[0]):
                transfer = self.stream.receive(self.granted.popleft())
                self.arriving.append(transfer)
                if not transfer.tensors:
                    self.open_lanes.remove(lane)
                    return
            else:
                return

    def _take_in(self, transfer: Transfer) -> None:
        """Put a chunk that has arrived, or the end of its lane, into the lane's queue."""
        arrived = self.arrived[transfer.number % self.stream.lanes]
        finished = self.stream.finish(transfer)
        self.arrivals += 1
        if finished.tensors:
            arrived.put(self.stream.unpack(transfer))
        else:
            self.room.release()
            arrived.put(None)
