"""The link between producers and consumers: the bytes of a chunk, credits, and errors about silent peers.

Protocol. Chunk c of lane v (c mod V = v) goes from producer v mod P to consumer v mod C of every group g of
consumers, and to no one else. All sides walk chunks in ascending order of c. Credits travel on the CPU (the
process group's store): a consumer that has room for chunk c sets `credit/<g>/<c>` to "go" before it receives
it; a producer computes ahead, but sends only against a credit, and sets `size/<g>/<c>` when it sends, so
neither side ever launches a send or a receive that the other is not ready for: ids and header as bytes, then
the rows. When a consumer is done it sets the next credit of each of its lanes to "stop"; a lane that has
ended has a size of 0. Consumers write where each lane starts (a resumed run) to `start/<g>/<lane>`.
A rank that fails writes the reason to `failed`, which every wait looks at.
"""

import json
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sae_dist.core.errors import TransportError
from sae_dist.core.moving import moved
from sae_dist.core.process import pause
from sae_dist.core.text import first_line
from sae_dist.core.types import ActivationChunk, Position
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology

HEADER_BYTES = 512
NEVER = 2**40
"""The first chunk of a lane whose consumer wants no chunk at all: its run was resumed at its last step."""
FIRST_POLL_S, LONGEST_POLL_S = 0.0001, 0.002
LOOK_S = 0.1


@dataclass
class Transfer:
    """A chunk under way, with the tensors that must stay alive until it arrives; no tensors: a lane's end."""

    number: int
    peer: str
    works: list[dist.Work]
    tensors: list[Tensor]


class Stream:
    """The link between producers and consumers, as either side sees it.

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
        name: str = "run",
    ):
        self.topology, self.lanes, self.rows, self.width = topology, lanes, rows, width
        self.dtype, self.device, self.timeout_s = dtype, device, timeout_s
        self.control, self.look_at = Control(timeout_s, name), 0.0

    def wait(self, key: str, whom: str) -> str:
        """Wait for a key; return its value.

        Raises:
            TransportError: `whom` did not set it within `timeout_s`, or a rank failed; the message names it.
        """
        until, wait_s = time.monotonic() + self.timeout_s, FIRST_POLL_S
        while not self._looking_out().check(key):
            if time.monotonic() > until:
                raise TransportError(f"{whom} was silent for {self._limit()}, in a wait for {key}")
            # A blocking wait would hold the store's only connection, which other threads use too.
            pause(wait_s)
            wait_s = min(2 * wait_s, LONGEST_POLL_S)
        return self.control.get(key)

    def starts(self, lane: int) -> list[Position | None]:
        """Wait for the positions at which a lane begins, one from each group's consumer."""
        found = []
        for group in range(self.topology.num_groups):
            whom = f"consumer rank {self.topology.consumer_rank(lane, group)}"
            found.append(json.loads(self.wait(f"start/{group}/{lane}", whom)))
        return found

    def consumer_of(self, number: int, group: int = 0) -> int:
        """Return the rank of the consumer that a chunk is for."""
        return self.topology.consumer_rank(number % self.lanes, group)

    def credit(self, number: int, group: int = 0) -> bool:
        """Wait until a chunk's consumer has room for it; return False if it wants no more."""
        word = self.wait(f"credit/{group}/{number}", f"consumer rank {self.consumer_of(number, group)}")
        self.control.delete(f"credit/{group}/{number}")
        return word == "go"

    def send(self, number: int, chunk: ActivationChunk | None, group: int = 0) -> Transfer:
        """Begin to send a chunk that has its credit; None: announce that its lane has ended."""
        consumer = self.consumer_of(number, group)
        transfer = Transfer(number, f"consumer rank {consumer}", [], [])
        if chunk is None:
            self.control.set(f"size/{group}/{number}", "0")
            return transfer
        rows = moved(chunk.rows_RD, self.device).to(self.dtype).contiguous()
        packed = moved(_pack(chunk), self.device)
        self.control.set(f"size/{group}/{number}", str(len(packed)))
        pair = self.topology.stream_groups[self.topology.producer_index, consumer]
        transfer.tensors = [packed, rows]
        for each in transfer.tensors:
            transfer.works.append(_begun(dist.isend(each, consumer, group=pair)))
        return transfer

    def tell_start(self, lane: int, start: Position | None) -> None:
        """Announce where this consumer's lane begins."""
        self.control.set(f"start/{self.topology.group}/{lane}", json.dumps(start))

    def grant(self, number: int, word: str) -> None:
        """Announce to a chunk's producer `go`: there is room for it; or `stop`: no more is wanted."""
        self.control.set(f"credit/{self.topology.group}/{number}", word)

    def is_sent(self, number: int) -> bool:
        """Return whether a chunk's producer is sending it."""
        return self.control.check(f"size/{self.topology.group}/{number}")

    def receive(self, number: int) -> Transfer:
        """Begin to receive a chunk, or learn that its lane has ended, as soon as its producer sends."""
        producer = number % self.lanes % self.topology.num_producers
        rank = self.topology.producer_rank(producer)
        transfer = Transfer(number, f"producer rank {rank}", [], [])
        key = f"size/{self.topology.group}/{number}"
        size = int(self.wait(key, transfer.peer))
        self.control.delete(key)
        if size == 0:
            return transfer
        pair = self.topology.stream_groups[producer, self.topology.rank]
        transfer.tensors = [
            torch.empty(size, dtype=torch.uint8, device=self.device),
            torch.empty(self.rows, self.width, dtype=self.dtype, device=self.device),
        ]
        for each in transfer.tensors:
            transfer.works.append(_begun(dist.irecv(each, rank, group=pair)))
        return transfer

    def finish(self, transfer: Transfer) -> Transfer:
        """Wait until a chunk has been transferred.

        Raises:
            TransportError: its peer was silent for `timeout_s`, or is gone; the message names peer and chunk.
        """
        where = f"in the middle of chunk {transfer.number}"
        if self.device.type == "cuda":
            self._await(transfer, where)
        try:
            for work in transfer.works:
                work.wait()
        except RuntimeError as error:
            self._raise_failure()
            first = first_line(error)[:200]
            silent = "timed out" in first.lower()
            what = f"was silent for {self._limit()}" if silent else f"is gone ({first})"
            raise TransportError(f"{transfer.peer} {what}, {where}") from None
        return transfer

    def _await(self, transfer: Transfer, where: str) -> None:
        """Wait until the device has moved a chunk, or until it fails.

        NCCL's own wait has no end: it holds up the current stream, not this thread, and so would a wait for
        that stream.

        Raises:
            TransportError: it took longer than `timeout_s`, or a rank failed; the message names it.
        """
        until, wait_s = time.monotonic() + self.timeout_s, FIRST_POLL_S
        while not all(work.is_completed() for work in transfer.works):
            self._looking_out()
            if time.monotonic() > until:
                raise TransportError(f"{transfer.peer} was silent for {self._limit()}, {where}")
            pause(wait_s)
            wait_s = min(2 * wait_s, LONGEST_POLL_S)

    def unpack(self, transfer: Transfer) -> ActivationChunk:
        """Build the activation chunk from the bytes that arrived."""
        packed, rows = transfer.tensors
        packed = packed.cpu()
        ids = packed[:-HEADER_BYTES].view(torch.int64)
        text = bytes(packed[-HEADER_BYTES:].tolist()).rstrip(b"\0")
        excluded, repeated, start, left_out = json.loads(text)
        number, lane = transfer.number, transfer.number % self.lanes
        return ActivationChunk(number, lane, rows, ids, start, excluded, repeated, left_out)

    def _looking_out(self) -> Control:
        """Return the store; at intervals, check first whether any rank has failed."""
        if time.monotonic() > self.look_at:
            self._raise_failure()
            self.look_at = time.monotonic() + LOOK_S
        return self.control

    def look_out(self) -> None:
        """Look whether a rank has failed.

        Raises:
            TransportError: one has.
        """
        self._looking_out()

    def _raise_failure(self) -> None:
        """Raise the reason of the rank that failed first, if one has."""
        failure = self.control.failure()
        if failure:
            raise TransportError(failure)

    def _limit(self) -> str:
        return f"{self.timeout_s:g} s (topology.timeout_s)"


def _pack(chunk: ActivationChunk) -> Tensor:
    """Pack ids and header of a chunk as bytes: 8 R of ids, then JSON, padded."""
    text = json.dumps([chunk.excluded, chunk.repeated, chunk.start, chunk.left_out]).encode()
    assert len(text) <= HEADER_BYTES, "a position is a handful of integers"
    header = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
    header[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return torch.cat([chunk.ids_R.cpu().contiguous().view(torch.uint8), header])


def _begun(work: dist.Work | None) -> dist.Work:
    assert work is not None, "both ranks are in the group"
    return work
