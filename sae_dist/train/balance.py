"""Measures which share of the time consumers waited for chunks, and producers for consumers.

It counts from the end of the first step: before that ranks load and fill the lanes. Where there are no
producers, it counts the seconds that consumers spent on making or reading their chunks instead.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

from sae_dist.config.run import RunConfig
from sae_dist.distributed.mesh import Topology
from sae_dist.transport.timed import Timed, work_of_producers
from sae_dist.transport.wire import Stream

CLOSE = 1.1
"""A proportion in small whole numbers may be off by this factor."""
BOTH_WAIT = 0.2
"""If both sides wait more than this share, no proportion of them would help."""


@dataclass(frozen=True)
class Waits:
    """The entries of `balance` in summary.json.

    consumers_waited    share of the time that consumers waited for chunks; of each row of metrics, that of
                        the consumer that waited longest
    producers_waited    share of the time that producers did not compute: they waited for consumers to have
                        room, or for their chunks to be sent
    chunk_busy_s        seconds that a producer (a group of ranks, if it is one) computes a chunk
    step_busy_s         seconds of a step without that wait
    producers_per_consumer      the proportion at which neither would wait, if work splits evenly over more
                                consumers and more producers
    """

    consumers_waited: float
    producers_waited: float
    chunk_busy_s: float
    step_busy_s: float
    producers_per_consumer: float

    def in_words(self) -> str:
        """Say in one line who waited, and which proportion of ranks would change that."""
        shares = (
            f"producers waited {percent(self.producers_waited)} of the time, "
            f"consumers {percent(self.consumers_waited)}"
        )
        if min(self.producers_waited, self.consumers_waited) > BOTH_WAIT:
            return f"{shares}: the transport between them, or other work on their processors, held up both"
        producers, consumers = proportion(self.producers_per_consumer)
        return (
            f"{shares}: {producers} producer{'s' * (producers > 1)} per {consumers} "
            f"consumer{'s' * (consumers > 1)} would balance them"
        )


class Balance:
    """The counters of a consumer rank; the first of a group also reads those of the producers."""

    def __init__(self, cfg: RunConfig, topology: Topology, chunks: Timed, stream: Stream | None):
        """Count from 0.

        Args:
            chunks: what the lanes pull from.
            stream: the link to producers; None if this rank makes or reads its chunks.
        """
        self.cfg, self.topology, self.chunks, self.stream = cfg, topology, chunks, stream
        self.column = "perf/wait_for_chunks_s" if stream else "perf/make_chunks_s"
        self.steps = -1
        self.seconds = self.waited = self.worked = 0.0
        self.made = 0

    def step(self) -> None:
        """Count a step that has ended."""
        self.steps += 1
        if self.steps == 0:
            self.since, self.pulled = time.monotonic(), self.chunks.seconds
            self.work = self._work()

    def spent(self) -> float:
        """Return the seconds that this rank spent on getting chunks since the last call."""
        before, self.pulled = self.pulled, self.chunks.seconds
        return self.pulled - before

    def row(self, waited: float) -> dict[str, float]:
        """Return the columns that the first rank of a group adds to a row of metrics, {} elsewhere.

        Args:
            waited: the largest `spent` of all consumers.
        """
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        self.seconds += seconds
        self.waited += waited
        before, self.work = self.work, self._work()
        if before is None or self.work is None:
            return {}
        worked = self.work[0] - before[0]
        self.worked += worked
        self.made += self.work[1] - before[1]
        return {"perf/wait_for_credit_s": max(seconds - worked / self.topology.num_producers, 0.0)}

    def waits(self) -> Waits | None:
        """Return the waits so far, on a group's first rank; None without producers or after too few steps."""
        if self.stream is None or self.steps < 1 or self.work is None or not self.work[1]:
            return None
        cfg, senders = self.cfg, self.topology.num_producers
        consumers = self.topology.num_groups * self.topology.num_consumers
        # Chunks that were all made before the first step ended still tell what one costs.
        worked, made = (self.worked, self.made) if self.made else self.work
        chunk_s = worked / made * cfg.topology.producers / senders
        step_s = max(self.seconds - self.waited, 1e-9) / self.steps
        chunks_per_step = cfg.batch / cfg.shuffle.chunk_rows
        return Waits(
            consumers_waited=self.waited / self.seconds,
            producers_waited=max(1 - self.worked / senders / self.seconds, 0.0),
            chunk_busy_s=chunk_s,
            step_busy_s=step_s,
            producers_per_consumer=chunks_per_step * chunk_s / step_s / consumers,
        )

    def summary(self) -> dict[str, Any]:
        """Return the entries of summary.json."""
        waits = self.waits()
        return {"balance": asdict(waits)} if waits else {}

    def _work(self) -> tuple[float, int] | None:
        if self.stream is None or not self.topology.leads:
            return None
        return work_of_producers(self.stream.control, self.topology.num_producers)


def proportion(ratio: float) -> tuple[int, int]:
    """Return producers to consumers in small whole numbers, near `ratio`."""
    flip = ratio > 1
    ratio = max(1 / ratio if flip else ratio, 1e-6)
    for few in range(1, 5):
        many = max(round(few / ratio), 1)
        off = few / many / ratio
        if max(off, 1 / off) < CLOSE:
            break
    return (many, few) if flip else (few, many)


def percent(share: float) -> str:
    """Write a share in percent, as `63 %` or `0.4 %`."""
    return f"{share:.0%}".replace("%", " %") if share >= 0.095 else f"{share:.1%}".replace("%", " %")
