"""Metrics of a training run: what is recorded at each step, and the row that it becomes.

`metrics.catalogue` has every column, with its unit and formula. Letter: B rows of this rank.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.types import Batch, LossTerms
from sae_dist.metrics.jsonl import JsonlSink
from sae_dist.metrics.recorder import Recorder
from sae_dist.metrics.sinks import Sink
from sae_dist.train.balance import Balance
from sae_dist.train.speed import Speed
from sae_dist.train.state import Run

HASH_PRIME = 2147483647


class RunMeter:
    """The metrics of one dictionary: every consumer rank records, and the rank that has sinks writes.

    Attributes:
        kept: lines of metrics.jsonl in the checkpoint that this run goes on from, see `metrics.jsonl`.
    """

    def __init__(self, recorder: Recorder, balance: Balance, speed: Speed):
        self.recorder, self.balance, self.speed = recorder, balance, speed
        self.sinks: Sequence[Sink] = ()
        self.steps = 0
        self.since = time.monotonic()
        self.added: dict[str, float] = {}
        self.kept: list[str] = []

    def add(self, values: dict[str, float], seconds: float) -> None:
        """Add columns to the next row; the seconds that they took do not count as training."""
        self.added |= values
        self.since += seconds

    def record(self, run: Run, batch: Batch, terms: LossTerms, norm: Tensor, lr: float) -> None:
        """Record the numbers of this step; nothing is copied to the host here."""
        parts, record = terms.parts, self.recorder.record
        consumers = run.topology.num_consumers
        record("loss/total", terms.total * consumers, "mean")
        record("squared_error", parts["squared_error"], "sum")
        record("deviation", parts["deviation"], "sum")
        record("codes", parts["num_codes"], "sum")
        record("latents/dead_fraction", parts["num_dead"] * consumers / run.cfg.sae.num_latents, "mean")
        for name in ("aux", "sparsity", "num_redone"):
            if name in parts:
                record(name, parts[name], "sum")
        record("optim/grad_norm", norm, "last")
        record("optim/lr", lr, "last")
        record("stream/batch_hash", batch_hash(run, batch.ids_B), "sum")
        self.steps += 1
        self.balance.step()

    def flush(self, run: Run) -> None:
        """Reduce over ranks and steps, and write the row; do nothing if no step was recorded."""
        if not self.steps:
            return
        counts = run.shuffle.counts()
        for name, count in counts.metrics(run.cfg.shuffle.chunk_rows).items():
            self.recorder.record(name, float(count), "sum")
        self.recorder.record(self.balance.column, self.balance.spent(), "max")
        self.speed.record(self.recorder.record)
        sums = self.recorder.flush()
        rows = self.steps * run.cfg.batch
        seconds = time.monotonic() - self.since
        row = {
            "step": run.progress.step,
            "tokens": run.progress.tokens,
            "loss/fvu": sums.pop("squared_error") / sums.pop("deviation"),
            "loss/aux": sums.pop("aux", 0.0) / self.steps,
            "loss/sparsity": sums.pop("sparsity", 0.0) / self.steps,
            "sparsity/l0": sums.pop("codes") / rows,
            "perf/tokens_per_second": rows / max(seconds, 1e-9),
            "perf/wall_ms": 1000 * seconds / self.steps,
        }
        if "num_redone" in sums:
            row["perf/redone_rows"] = sums.pop("num_redone") / self.steps
        row |= self.speed.row(sums) | sums
        row |= self.balance.row(sums[self.balance.column]) | self.added
        self.added = {}
        for sink in self.sinks:
            sink.write(row)
        self.steps, self.since = 0, time.monotonic()

    def balance_in_words(self) -> str | None:
        """Say who waited for whom, and which topology would change that; None without producers."""
        waits = self.balance.waits()
        return waits.in_words() if waits else None

    def summary(self, tokens: int) -> dict[str, Any]:
        """Return what the meter adds to summary.json."""
        return self.balance.summary() | self.speed.summary(tokens)

    def unwritten(self) -> list[str]:
        """List the lines of metrics.jsonl that wait for the disk, for a checkpoint to keep."""
        return [line for sink in self.sinks if isinstance(sink, JsonlSink) for line in sink.unwritten]

    def check(self) -> None:
        """Check that every row is written.

        Raises:
            SaeDistError: some still wait for the disk; the last checkpoint has them.
        """
        for sink in self.sinks:
            if isinstance(sink, JsonlSink):
                sink.check()

    def alert(self, title: str, text: str) -> None:
        """Pass an alert on to every sink."""
        for sink in self.sinks:
            sink.alert(title, text)

    def close(self) -> None:
        """Finish the profile, and close the sinks."""
        self.speed.close()
        for sink in self.sinks:
            sink.close()


def batch_hash(run: Run, ids_B: Tensor) -> Tensor:
    """Return a number that is equal for equal (row of the run, id) pairs, whatever the topology.

    Row j of this rank's batch is row step * batch + rank + j * consumers of the run. Sums of up to 2**22
    rows stay below 2**53 and are exact in float64.
    """
    first = (run.progress.step - 1) * run.cfg.batch + run.topology.index
    row = first + torch.arange(len(ids_B), device=ids_B.device) * run.topology.num_consumers
    mixed = (row % HASH_PRIME * 48271 + ids_B * 69621 + 12345) % HASH_PRIME
    return ((mixed * mixed) % HASH_PRIME).sum().double()
