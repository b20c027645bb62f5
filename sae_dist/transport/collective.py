"""Producer ranks to consumer ranks over gloo or NCCL: nothing is dropped, nobody waits in vain.

Protocol. Chunk c of lane v (c mod V = v) goes from producer v mod P to consumer v mod C, and to no one
else. All sides walk chunks in ascending order of c. Credits travel on the CPU (the process group's
store): a consumer that has room for chunk c sets `credit/<c>` to "go" before it receives it; a producer
computes ahead, but sends only against a credit, so neither side ever launches a send or a receive that
the other is not ready for. When a consumer is done it sets the next credit of each of its lanes to
"stop". Where each lane starts (a resumed run) is told by consumers through `start/<lane>`.
"""

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from sae_dist.core.errors import TransportError
from sae_dist.core.types import ActivationChunk, ChunkSource, Position
from sae_dist.dist.mesh import Topology
from sae_dist.transport.timed import Timed

HEADER_BYTES = 512
POLL_S = 0.001

Sends = list[tuple[dist.Work, Tensor]]
"""What is under way, and the tensors that have to stay alive until then."""


def _pack(chunk: ActivationChunk) -> Tensor:
    """Ids and header of a chunk as bytes: 8 R of ids, then JSON, padded."""
    text = json.dumps([chunk.excluded, chunk.repeated, chunk.start]).encode()
    assert len(text) <= HEADER_BYTES, "a position is a handful of integers"
    header = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
    header[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return torch.cat([chunk.ids_R.cpu().contiguous().view(torch.uint8), header])


def _unpack(number: int, lane: int, rows_RD: Tensor, packed: Tensor) -> ActivationChunk:
    packed = packed.cpu()
    ids = packed[:-HEADER_BYTES].view(torch.int64)
    text = bytes(packed[-HEADER_BYTES:].tolist()).rstrip(b"\0")
    excluded, repeated, start = json.loads(text)
    return ActivationChunk(number, lane, rows_RD, ids, start, excluded, repeated)


class Stream:
    """What both sides know: the store, who owns which lane, shapes and the timeout.

    `name` keeps the keys of several streams of one world apart.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        lanes: int,
        rows: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        timeout_s: float,
        name: str = "stream",
    ):
        self.topology, self.lanes, self.rows, self.width = topology, lanes, rows, width
        self.dtype, self.device, self.timeout_s = dtype, device, timeout_s
        self.store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store())

    def wait(self, key: str, whom: str) -> str:
        """The value of `key`, once it is there.

        Raises:
            TransportError: nobody set it within `timeout_s`; names `whom`.
        """
        until = time.monotonic() + self.timeout_s
        while not self.store.check([key]):
            # A blocking wait would hold the store's only connection, which other threads use too.
            if time.monotonic() > until:
                waited = f"{self.timeout_s:g} s (topology.timeout_s)"
                raise TransportError(f"{whom} was silent for {waited}, while {key} was awaited")
            time.sleep(POLL_S)
        return self.store.get(key).decode()

    def starts(self, lanes: list[int]) -> dict[int, Position | None]:
        """Where each lane begins, as its consumer says."""
        consumers = self.topology.num_consumers
        return {v: json.loads(self.wait(f"start/{v}", f"consumer rank {v % consumers}")) for v in lanes}

    def credit(self, number: int) -> bool:
        """Wait until a chunk's consumer has room for it; False: it wants no more."""
        consumer = number % self.lanes % self.topology.num_consumers
        word = self.wait(f"credit/{number}", f"consumer rank {consumer}")
        self.store.delete_key(f"credit/{number}")
        return word == "go"

    def send(self, number: int, chunk: ActivationChunk | None) -> Sends:
        """Begin to send a chunk that has its credit; None: say that its lane has ended."""
        if chunk is None:
            self.store.set(f"size/{number}", "0")
            return []
        rows = chunk.rows_RD.to(self.device, self.dtype).contiguous()
        packed = _pack(chunk).to(self.device)
        self.store.set(f"size/{number}", str(len(packed)))
        consumer = number % self.lanes % self.topology.num_consumers
        group = self.topology.stream_groups[self.topology.producer_index, consumer]
        return [(_under_way(dist.isend(each, consumer, group=group)), each) for each in (packed, rows)]


def produce(stream: Stream, source: ChunkSource, in_flight: int) -> int:
    """A producer rank's whole life: compute chunks and send them until every consumer has enough.

    A group that computes its chunks together walks these lines together; its first rank alone sends.

    Returns:
        The number of chunks sent, by the group.
    """
    topology, me = stream.topology, stream.topology.producer_index
    lanes = topology.lanes_of_producer(me, stream.lanes)
    starts, timed = stream.starts(lanes), Timed(source)
    chunks = {lane: timed.open(lane, starts[lane]) for lane in lanes}
    index = {lane: (start or {}).get("chunk", 0) for lane, start in starts.items()}
    sending: deque[Sends] = deque()
    sent = 0
    while lanes:
        lane = min(lanes, key=lambda v: (index[v], v))
        consumer = lane % topology.num_consumers
        number = index[lane] * stream.lanes + lane
        chunk = next(chunks[lane], None)
        if topology.is_sender:
            timed.tell(stream.store, me)
        if not _wanted(stream, number):
            lanes = [v for v in lanes if v % topology.num_consumers != consumer]
            continue
        if topology.is_sender:
            sending.append(stream.send(number, chunk))
        if chunk is None:
            lanes.remove(lane)
            continue
        while len(sending) > in_flight:
            await_sent(sending.popleft())
        index[lane] += 1
        sent += 1
    for pair in sending:
        await_sent(pair)
    return sent


def _wanted(stream: Stream, number: int) -> bool:
    """Whether the consumer takes this chunk: the sender knows, and tells its group."""
    topology = stream.topology
    wanted = torch.tensor([int(topology.is_sender and stream.credit(number))])
    return bool(topology.team.max(wanted) if topology.team else wanted)


def _under_way(work: dist.Work | None) -> dist.Work:
    assert work is not None, "both ranks are in the group"
    return work


def await_sent(pair: Sends) -> None:
    """Wait for sends; their tensors had to stay alive until now."""
    for work, _ in pair:
        work.wait()


class RemoteChunks:
    """The consumer's side: a `ChunkSource` whose chunks arrive from producers, ahead of need.

    One thread receives in ascending order of chunk number, up to `ahead` chunks per lane beyond those
    pulled: enough that lanes, which differ by less than two groups, never wait for each other.
    """

    def __init__(self, stream: Stream, *, lanes: list[int], ahead: int, in_flight: int):
        self.stream, self.lanes, self.width = stream, lanes, stream.width
        # Groups in step want the credits of a whole round before they compute any of it.
        self.at_least = stream.topology.num_producers if stream.topology.in_step else 1
        in_flight += self.at_least - 1
        self.in_flight = in_flight
        self.room = threading.Semaphore(ahead * len(lanes) + in_flight)
        self.arrived: dict[int, queue.Queue[ActivationChunk | Exception | None]] = {
            lane: queue.Queue() for lane in lanes
        }
        self.index: dict[int, int] = {}
        self.open_lanes = list(lanes)
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._receive, name="receive", daemon=True)

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """See `ChunkSource.open`; every lane must be opened once before the first chunk is pulled."""
        self.index[lane] = (start or {}).get("chunk", 0)
        self.stream.store.set(f"start/{lane}", json.dumps(start))
        return self._chunks(lane)

    def _chunks(self, lane: int) -> Iterator[ActivationChunk]:
        if not self.thread.is_alive():
            assert len(self.index) == len(self.lanes), "all lanes are opened before any is read"
            self.thread.start()
        while True:
            chunk = self.arrived[lane].get()
            if isinstance(chunk, Exception):
                raise chunk
            if chunk is None:
                return
            self.room.release()
            yield chunk

    def close(self) -> None:
        """Tell the producers to stop, and take in what was already promised to arrive."""
        self.closing.set()
        self.room.release()
        if self.thread.is_alive():
            self.thread.join()
        elif self.thread.ident is None:
            # Nothing was ever read: a resumed run that had been trained to its end.
            for lane in self.open_lanes:
                if lane not in self.index:
                    self.open(lane, None)
            self._stop()

    def _receive(self) -> None:
        """The thread: grant credits up to `in_flight` ahead, receive, sort into lanes."""
        granted: deque[int] = deque()
        stopped = False
        if self.stream.device.type == "cuda":
            torch.cuda.set_device(self.stream.device)
        try:
            while granted or self._wants_more():
                while (open_credits := self._open(granted)) < self.in_flight and self._wants_more():
                    if not self.room.acquire(blocking=open_credits < self.at_least):
                        break
                    if not self.closing.is_set():
                        granted.append(self._grant("go"))
                if not stopped and not self._wants_more():
                    # Before what is still to come: it may share a round with what is not wanted any more.
                    self._stop()
                    stopped = True
                if granted:
                    self._receive_one(granted.popleft())
            if not stopped:
                self._stop()
        except Exception as error:
            for lane in self.lanes:
                self.arrived[lane].put(error)

    def _wants_more(self) -> bool:
        return bool(self.open_lanes) and not self.closing.is_set()

    def _open(self, granted: deque[int]) -> int:
        """Credits granted for chunks that may come: a lane may have ended since."""
        return sum(number % self.stream.lanes in self.open_lanes for number in granted)

    def _stop(self) -> None:
        """Instead of the next credit, every lane that has not ended gets a stop."""
        for _ in self.open_lanes:
            self._grant("stop")

    def _grant(self, word: str) -> int:
        lane = min(self.open_lanes, key=lambda v: (self.index[v], v))
        number = self.index[lane] * self.stream.lanes + lane
        self.index[lane] += 1
        self.stream.store.set(f"credit/{number}", word)
        return number

    def _receive_one(self, number: int) -> None:
        """Receive one chunk into its lane, or learn that the lane has ended."""
        stream, topology = self.stream, self.stream.topology
        lane = number % stream.lanes
        if lane not in self.open_lanes:
            return  # granted ahead, before the lane was known to have ended
        producer = lane % topology.num_producers
        rank = topology.producer_rank(producer)
        size = int(stream.wait(f"size/{number}", f"producer rank {rank}"))
        stream.store.delete_key(f"size/{number}")
        if size == 0:
            self.open_lanes.remove(lane)
            self.arrived[lane].put(None)
            return
        group = topology.stream_groups[producer, topology.rank]
        packed = torch.empty(size, dtype=torch.uint8, device=stream.device)
        rows = torch.empty(stream.rows, stream.width, dtype=stream.dtype, device=stream.device)
        for tensor in (packed, rows):
            _under_way(dist.irecv(tensor, rank, group=group)).wait()
        self.arrived[lane].put(_unpack(number, lane, rows, packed))
