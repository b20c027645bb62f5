"""The shuffle by lanes, which is deterministic, resumable and independent of the topology.

There are V lanes. Row q of the run belongs to lane q mod V, so lanes never drift apart. A lane reads
chunks of exactly R activations; `block_chunks` chunks make a group. Row r of group g goes to block g or
g + 1 by a hash of (seed, lane, g, r); a block is permuted by (seed, lane, block) and handed out. So
(block, offset) is the whole state of a lane, which can be rebuilt from the source by reading two groups.
"""

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_dist.core.errors import DataError
from sae_dist.core.moving import moved
from sae_dist.core.types import ActivationChunk, ChunkSource, Position


@dataclass(frozen=True)
class Counts:
    """The numbers of chunks pulled so far in the run, and of what was left out of them.

    excluded and repeated count rows, as in `ActivationChunk`; the others are those of `core.types.LEFT_OUT`.
    """

    chunks: int = 0
    excluded: int = 0
    repeated: int = 0
    special: int = 0
    masked: int = 0
    listed: int = 0
    roles: int = 0
    documents: int = 0

    @classmethod
    def of(cls, chunk: ActivationChunk) -> "Counts":
        """Return the counts of one chunk."""
        return cls(1, chunk.excluded, chunk.repeated, **chunk.left_out)

    def metrics(self, chunk_rows: int) -> dict[str, int]:
        """Return the counts by the names of their metrics, for chunks of so many rows."""
        return {
            "stream/read_rows": self.chunks * chunk_rows,
            "stream/excluded_rows": self.excluded,
            "stream/repeated_rows": self.repeated,
            "stream/special_tokens": self.special,
            "stream/masked_tokens": self.masked,
            "stream/listed_tokens": self.listed,
            "stream/other_roles_tokens": self.roles,
            "stream/skipped_documents": self.documents,
        }

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


class Lane:
    """A lane, which pulls chunks from a source and hands out shuffled rows.

    Args:
        phase: in [0, 1): the point within a chunk's worth of rows at which this lane pulls its next chunk.
            Lanes have different phases, so that the work of the LLM is spread over steps.
        total: rows this lane hands out in the whole run; chunks that they do not need are not pulled.
    """

    def __init__(
        self, source: ChunkSource, lane: int, *, seed: int, block_chunks: int, phase: float, total: int
    ):
        self.source, self.lane, self.seed = source, lane, seed
        self.block_chunks, self.phase, self.total = block_chunks, phase, total
        self.group: list[ActivationChunk] = []
        self.starts: dict[int, tuple[Position, Counts]] = {}
        self.deferred: tuple[Tensor, Tensor] | None = None
        self.rows: Tensor | None = None
        self._goto({"block": 0, "offset": 0, "handed": 0, "start": None, "counts": [0, 0, 0]})

    def _goto(self, state: dict[str, Any]) -> None:
        self.block, self.offset, self.handed = state["block"], state["offset"], state["handed"]
        self.start: Position | None = state["start"]
        self.counts = Counts(*state["counts"])
        self.group_number = max(self.block - 1, 0)

    def state(self) -> dict[str, Any]:
        """Return the lane's position, from which `restore` continues by reading two groups again."""
        start, counts = self.starts.get(max(self.block - 1, 0), (self.start, self.counts))
        return {
            "block": self.block,
            "offset": self.offset,
            "handed": self.handed,
            "start": start,
            "counts": list(astuple(counts)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Set the lane's position, before the lane is opened."""
        assert self.rows is None, "a lane that has handed out rows is not restored"
        self._goto(state)

    def open(self) -> None:
        """Open the source at the lane's position."""
        self.chunks = self.source.open(self.lane, self.start)

    def fill(self) -> None:
        """Build the current block: first the group before it, for the rows that it deferred."""
        offset = self.offset
        if self.block > 0:
            self._pull(self.block_chunks)
            self._split()
        self._build()
        self.offset = offset

    def take(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the next `count` rows and their ids, as one or more stretches of the lane's blocks."""
        parts = []
        while count:
            assert self.rows is not None, "filled when the shuffle was opened"
            if self.offset == len(self.rows):
                self.block += 1
                self._build()
            taken = min(count, len(self.rows) - self.offset)
            stretch = slice(self.offset, self.offset + taken)
            parts.append((self.rows[stretch], self.ids[stretch]))
            self.offset += taken
            self.handed += taken
            count -= taken
        self._pull_ahead()
        return parts

    def _pull_ahead(self) -> None:
        """Fill the next group in step with the rows handed out, but not past the end of the run."""
        assert self.rows is not None
        left = len(self.rows) - self.offset
        if self.handed + left < self.total:
            progress = self.offset / len(self.rows)
            self._pull(min(self.block_chunks, int(progress * self.block_chunks + self.phase)))

    def _pull(self, chunks: int) -> None:
        while len(self.group) < chunks:
            chunk = next(self.chunks, None)
            if chunk is None:
                raise DataError(
                    f"the source ran out in lane {self.lane} after {self.handed} rows of {self.total}; "
                    "allow more passes (tokens.epochs) or train on fewer tokens (train_tokens)"
                )
            if not self.group:
                self.starts[self.group_number] = chunk.start, self.counts
            self.group.append(chunk)
            self.counts += Counts.of(chunk)

    def _split(self) -> tuple[Tensor, Tensor]:
        """Divide the full group: return the rows that stay, and keep those of the next block."""
        rows = torch.cat([chunk.rows_RD for chunk in self.group])
        ids = torch.cat([chunk.ids_R for chunk in self.group])
        stays = self._draw("split", self.group_number, len(rows)) % 2 == 0
        stay, later = (torch.from_numpy(np.flatnonzero(mask)) for mask in (stays, ~stays))
        self.group = []
        self.group_number += 1
        self.deferred, kept = _chosen(rows, ids, later), _chosen(rows, ids, stay)
        return kept

    def _build(self) -> None:
        """Make the current block from what the last group deferred and what this group keeps."""
        before = self.deferred
        self._pull(self.block_chunks)
        rows, ids = self._split()
        if before is not None:
            rows, ids = torch.cat([before[0], rows]), torch.cat([before[1], ids])
        drawn = self._draw("permute", self.block, len(rows))
        order = torch.from_numpy(np.argsort(drawn, kind="stable"))
        (self.rows, self.ids), self.offset = _chosen(rows, ids, order), 0
        self.starts = {g: start for g, start in self.starts.items() if g >= self.block - 1}

    def _draw(self, purpose: str, number: int, count: int) -> np.ndarray:
        """Return raw random uint64 [count], the one stream that numpy keeps the same across versions."""
        tag = {"split": 1, "permute": 2}[purpose]
        return np.random.Philox(seed=[self.seed, self.lane, number, tag]).random_raw(count)


def _chosen(rows: Tensor, ids: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return some rows and their ids, each on its own device, chosen by an index on the host."""
    at = moved(index, rows.device)
    return rows.index_select(0, at), ids.index_select(0, at if ids.device == at.device else index)


class Shuffle:
    """The lanes of one consumer rank, from which it draws its rows of each step.

    Row q of the run belongs to consumer q mod C (C divides the number of lanes and the batch), so each
    rank draws batch / C rows, cycling through its lanes.
    """

    def __init__(
        self,
        source: ChunkSource,
        lanes: list[int],
        *,
        num_lanes: int,
        rows_per_step: int,
        steps: int,
        seed: int,
        block_chunks: int,
    ):
        self.rows_per_step, self.opened = rows_per_step, False
        self.turns: dict[torch.device, Tensor] = {}
        # Lanes differ by at most one row over the whole run; one more never costs more than a chunk.
        total = -(-rows_per_step * steps // len(lanes))
        self.lanes = [
            Lane(source, v, seed=seed, block_chunks=block_chunks, phase=v / num_lanes, total=total)
            for v in lanes
        ]

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this rank's rows of `step`, [batch / C, D], and their ids, in the order of q."""
        if not self.opened:
            self._open()
        count = len(self.lanes)
        first = step * self.rows_per_step % count
        parts = []
        for turn in range(min(count, self.rows_per_step)):
            parts += self.lanes[(first + turn) % count].take(-(-(self.rows_per_step - turn) // count))
        # Lane by lane, and then in turn: two launches on a GPU, however many lanes there are.
        rows, ids = torch.cat([rows for rows, _ in parts]), torch.cat([ids for _, ids in parts])
        return self._in_turn(rows), self._in_turn(ids)

    def _in_turn(self, values: Tensor) -> Tensor:
        """Return values that stand lane by lane in the order of q, in which the lanes take turns."""
        count, device = len(self.lanes), values.device
        if device not in self.turns:
            turns = torch.arange(self.rows_per_step)
            by_lane = torch.cat([turns[turn::count] for turn in range(min(count, len(turns)))])
            self.turns[device] = moved(by_lane.argsort(), device)
        return values.index_select(0, self.turns[device])

    def _open(self) -> None:
        """Open all lanes, then fill them, in the order of where they start.

        Chunks may arrive from elsewhere in the order of their numbers, with room for few ahead: a lane
        further on would wait for chunks that only come once those before it have been taken.
        """
        self.opened = True
        for lane in self.lanes:
            lane.open()
        for lane in sorted(self.lanes, key=lambda lane: (lane.start or {}).get("chunk", 0)):
            lane.fill()

    def state(self) -> dict[str, Any]:
        """Return the state of every lane of this rank, by lane number."""
        return {str(lane.lane): lane.state() for lane in self.lanes}

    def restore(self, states: dict[str, Any]) -> None:
        """Set every lane's position from a checkpoint, which holds all lanes of the run."""
        for lane in self.lanes:
            lane.restore(states[str(lane.lane)])

    def counts(self) -> Counts:
        """Return the sum of the lanes' counts."""
        return sum((lane.counts for lane in self.lanes), Counts())
