"""Lanes neither drift apart nor stall, whatever the lengths of documents: the stream, simulated by events.

The rules of `transport.collective` as events, in which a chunk takes as long as the tokens that were read for
it, with the real lanes at the end. Chunks of a fixed number of tokens fail the same simulation.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from sae_dist.core.types import ActivationChunk
from sae_dist.shuffle.lanes import Shuffle

LANES, ROWS, BLOCK, IN_FLIGHT = 24, 8, 4, 2
AHEAD = 2 * BLOCK + 1
ROWS_PER_LANE_AND_STEP = 2 * ROWS
LONGEST = 100_000


class Deadlock(Exception):
    """Nothing can move any more."""


class Documents:
    """A lane's documents, of 1 to 100k tokens and most of them short. BOS and outliers are no activations."""

    def __init__(self, lane: int):
        self.random, self.left = random.Random(lane), 0

    def read(self, most: int) -> int:
        """Read one BOS, and return 0, or up to `most` tokens of a document, and return their number."""
        if not self.left:
            self.left = min(LONGEST, int(self.random.random() ** (-1 / 0.7)))
            return 0
        read = min(self.left, most)
        self.left -= read
        return read

    def rows_chunk(self) -> tuple[int, int]:
        """Read until there are ROWS activations: (tokens read, activations)."""
        tokens = rows = 0
        while rows < ROWS:
            read = self.read(ROWS - rows)
            tokens += max(read, 1)
            rows += read - (self.random.random() < 0.01 * read)
        return tokens, ROWS

    def tokens_chunk(self) -> tuple[int, int]:
        """Read 2 * ROWS tokens: (tokens read, activations)."""
        tokens = rows = 0
        while tokens < 2 * ROWS:
            read = self.read(2 * ROWS - tokens)
            tokens += max(read, 1)
            rows += read
        return tokens, rows


@dataclass
class Producer:
    """Computes the chunks of its lanes in ascending order; sends against credits."""

    lanes: list[int]
    index: dict[int, int]
    made: int | None = None  # computed, without a credit yet
    busy_with: int | None = None
    done_at: int = 0
    sending: deque[int] = field(default_factory=deque)


@dataclass
class Consumer:
    """Grants credits in ascending order while it has room, and receives in the order that it granted."""

    lanes: list[int]
    index: dict[int, int]
    room: int
    granted: deque[int] = field(default_factory=deque)


class World:
    """All ranks; `advance` lets one event happen."""

    def __init__(self, producers: int, consumers: int, chunk: Callable[[Documents], tuple[int, int]]):
        self.documents = [Documents(lane) for lane in range(LANES)]
        self.chunk, self.now, self.computed = chunk, 0, 0
        self.producers = [
            Producer(lanes, dict.fromkeys(lanes, 0))
            for lanes in (list(range(p, LANES, producers)) for p in range(producers))
        ]
        self.consumers = [
            Consumer(lanes, dict.fromkeys(lanes, 0), AHEAD * len(lanes) + IN_FLIGHT)
            for lanes in (list(range(c, LANES, consumers)) for c in range(consumers))
        ]
        self.rows: dict[int, int] = {}
        self.credits: set[int] = set()
        self.arrived: list[deque[int]] = [deque() for _ in range(LANES)]
        self.most_waiting = self.most_unsent = 0

    def advance(self) -> bool:
        """One thing happens; False: nothing can."""
        if any([self._produce(each) for each in self.producers] + [self._consume(c) for c in self.consumers]):
            return True
        busy = [each for each in self.producers if each.busy_with is not None]
        if not busy:
            return False
        self.now = min(each.done_at for each in busy)
        return True

    def _produce(self, p: Producer) -> bool:
        if p.made is not None and p.made in self.credits:
            self.credits.remove(p.made)
            p.sending.append(p.made)
            p.made = None
            return True
        if p.busy_with is not None and p.done_at <= self.now:
            p.made, p.busy_with = p.busy_with, None
            return True
        unsent = len(p.sending) + (p.made is not None)
        self.most_unsent = max(self.most_unsent, unsent)
        if p.busy_with is None and p.made is None and len(p.sending) <= IN_FLIGHT:
            lane = min(p.lanes, key=lambda v: (p.index[v], v))
            p.busy_with = p.index[lane] * LANES + lane
            p.index[lane] += 1
            tokens, self.rows[p.busy_with] = self.chunk(self.documents[lane])
            p.done_at = self.now + tokens
            self.computed += 1
            return True
        return False

    def _consume(self, c: Consumer) -> bool:
        moved = False
        while len(c.granted) < IN_FLIGHT and c.room:
            lane = min(c.lanes, key=lambda v: (c.index[v], v))
            c.granted.append(c.index[lane] * LANES + lane)
            self.credits.add(c.granted[-1])
            c.index[lane] += 1
            c.room -= 1
            moved = True
        if c.granted:
            sender = self.producers[c.granted[0] % LANES % len(self.producers)]
            if c.granted[0] in sender.sending:
                number = c.granted.popleft()
                sender.sending.remove(number)
                self.arrived[number % LANES].append(number)
                waiting = sum(len(self.arrived[lane]) for lane in c.lanes) / len(c.lanes)
                self.most_waiting = max(self.most_waiting, waiting)
                moved = True
        return moved

    def pull(self, lane: int) -> ActivationChunk:
        """A consumer's lane wants its next chunk."""
        while not self.arrived[lane]:
            if not self.advance():
                raise Deadlock(f"lane {lane} waits after {self.computed} chunks")
        number = self.arrived[lane].popleft()
        self.consumers[lane % len(self.consumers)].room += 1
        rows = torch.zeros(self.rows.pop(number), 1)
        return ActivationChunk(number, lane, rows, torch.zeros(len(rows), dtype=torch.int64), {"chunk": 0})

    def open(self, lane: int, start) -> Iterator[ActivationChunk]:
        while True:
            yield self.pull(lane)


def run(world: World, chunks: int, *, in_step: bool = True) -> None:
    """Train on so many chunks; now and then the consumers think until every queue is full.

    Args:
        in_step: check that lanes are.
    """
    steps = chunks * ROWS // LANES // ROWS_PER_LANE_AND_STEP
    count = len(world.consumers)
    shuffles = [
        Shuffle(
            world,
            each.lanes,
            num_lanes=LANES,
            rows_per_step=LANES * ROWS_PER_LANE_AND_STEP // count,
            steps=steps,
            seed=0,
            block_chunks=BLOCK,
        )
        for each in world.consumers
    ]
    lanes = [lane for shuffle in shuffles for lane in shuffle.lanes]
    for step in range(steps):
        for shuffle in shuffles:
            shuffle.draw(step)
        assert len({lane.handed for lane in lanes}) == 1, "every lane has handed out the same rows"
        pulled = [lane.counts.chunks for lane in lanes]
        assert not in_step or max(pulled) - min(pulled) < 2 * BLOCK, "lanes differ by less than two groups"
        if step % 50 == 49:
            while world.advance():
                pass


@pytest.mark.parametrize(
    ("producers", "consumers", "chunks"),
    [
        pytest.param(3, 4, 100_000, marks=pytest.mark.long),
        (3, 4, 8000),
        (1, 1, 4000),
        (5, 2, 4000),
        (2, 12, 4000),
    ],
)
def test_lanes_keep_in_step_and_nothing_stalls(producers, consumers, chunks):
    world = World(producers, consumers, Documents.rows_chunk)
    run(world, chunks)
    assert world.computed >= chunks
    share = LANES // consumers
    assert AHEAD - 1 < world.most_waiting <= AHEAD + IN_FLIGHT / share, "queues fill up, and no further"
    assert world.most_unsent <= IN_FLIGHT + 2


def test_chunks_of_a_fixed_number_of_tokens_drift_apart():
    rows = []
    for lane in range(LANES):
        documents = Documents(lane)
        rows.append(sum(documents.tokens_chunk()[1] for _ in range(2000)))
    assert max(rows) - min(rows) > 10 * (2 * BLOCK * ROWS), "ten times what fixed rows allow"


@pytest.mark.parametrize(("producers", "consumers"), [(3, 4), (1, 1)])
def test_chunks_of_a_fixed_number_of_tokens_stall(producers, consumers):
    world = World(producers, consumers, Documents.tokens_chunk)
    with pytest.raises(Deadlock):
        run(world, 100_000, in_step=False)
    assert world.computed < 20_000
