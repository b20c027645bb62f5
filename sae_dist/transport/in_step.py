"""Producer groups whose ranks run the LLM in step: with ZeRO-3, each layer is gathered from all of them.

A group walks its lanes in ascending order of chunk number, as a single producer does. A round is the longest
beginning of that order with at most one chunk per rank. Each rank obtains its chunk's credit before the round
is computed, and all ranks learn which have one: a rank without a chunk (its consumer has enough, its lane has
ended, or the order assigned it no chunk) runs its forwards on padding. So no rank waits in the LLM for one
that waits for a credit. Consumers grant a round's worth of credits more than to single producers.
"""

from collections import deque
from typing import Protocol

import torch

from sae_dist.core.types import ChunkSource
from sae_dist.transport.collective import first_chunk
from sae_dist.transport.timed import Timed
from sae_dist.transport.wire import Stream, Transfer


class InStepSource(ChunkSource, Protocol):
    """A source whose ranks compute together: in each round every rank pulls one chunk, or idles once."""

    def idle(self) -> None:
        """Join a round without a chunk of one's own."""
        ...


def produce_in_step(stream: Stream, source: InStepSource, in_flight: int) -> int:
    """Produce like `collective.produce`, on a rank of a group in step; return how many chunks it sent."""
    topology, team = stream.topology, stream.topology.team
    assert team is not None, "a group of one is a lone producer"
    first = topology.producer_index - team.rank
    members = range(first, first + team.size)
    lanes = [v for each in members for v in topology.lanes_of_producer(each, stream.lanes)]
    starts = {lane: stream.starts(lane)[0] for lane in lanes}
    index = {lane: first_chunk(start) for lane, start in starts.items()}
    mine = topology.lanes_of_producer(topology.producer_index, stream.lanes)
    timed = Timed(source)
    chunks = {lane: timed.open(lane, starts[lane]) for lane in mine}
    sending: deque[Transfer] = deque()
    sent = 0
    while lanes:
        turn = next_round(lanes, index, {v: v % topology.num_producers - first for v in lanes}, stream.lanes)
        lane = turn.get(team.rank)
        number = None if lane is None else index[lane] * stream.lanes + lane
        go = number is not None and stream.credit(number)
        wanted = _told(stream, go)
        done = {turn[member] % topology.num_consumers for member in turn if not wanted[member]}
        chunk = next(chunks[lane], None) if go and lane is not None else None
        timed.tell(stream.control, topology.producer_index)
        if any(wanted) and chunk is None:
            source.idle()
        ended = _told(stream, go and chunk is None)
        if go and number is not None:
            sending.append(stream.send(number, chunk))
            sent += chunk is not None
        while len(sending) > in_flight:
            stream.finish(sending.popleft())
        for member, each in turn.items():
            index[each] += wanted[member]
        over = {turn[member] for member in turn if ended[member]}
        lanes = [v for v in lanes if v not in over and v % topology.num_consumers not in done]
    for transfer in sending:
        stream.finish(transfer)
    return sent


def next_round(
    lanes: list[int], index: dict[int, int], member: dict[int, int], num_lanes: int
) -> dict[int, int]:
    """Return {member: lane} of the next chunks in order, up to the first member that occurs twice."""
    turn: dict[int, int] = {}
    ordered = sorted((index[v] * num_lanes + v, v) for v in lanes)
    for number, lane in ordered:
        # The next chunk of the first lane precedes those of lanes that are far ahead.
        if member[lane] in turn or number > ordered[0][0] + num_lanes:
            break
        turn[member[lane]] = lane
    return turn


def _told(stream: Stream, mine: bool) -> list[bool]:
    """Share a flag within the group; return the flag of each rank."""
    team = stream.topology.team
    assert team is not None
    flags = torch.zeros(team.size, dtype=torch.int64)
    flags[team.rank] = int(mine)
    return [bool(each) for each in team.sum(flags)]
