"""The walk of one consumer through the text of an atlas: the codes of its own latents, window by window.

Letters: as core.types; S the ranks of the shard axis.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_dist.atlas.encode import ShardEncoder, rows_of
from sae_dist.atlas.finish import GO_ON
from sae_dist.atlas.progress import Done
from sae_dist.atlas.text import Plan
from sae_dist.atlas.windows import WindowCodes
from sae_dist.config.atlas import AtlasConfig
from sae_dist.config.run import Single
from sae_dist.config.triton import triton_problem
from sae_dist.core.errors import Preempted
from sae_dist.core.progress import reported
from sae_dist.core.types import ActivationChunk, ChunkSource, LlmFacts, Precision
from sae_dist.distributed import runtime
from sae_dist.distributed.mesh import Topology
from sae_dist.export.exported import ExportedSae
from sae_dist.kernels.choose import choose_kernels


@dataclass(frozen=True)
class Pass:
    """The things a rank of the pass works with; `folder` is the atlas's, `target_hook` the run's."""

    cfg: Single
    target_hook: str | None
    atlas: AtlasConfig
    folder: Path
    sae: ExportedSae
    facts: LlmFacts
    plan: Plan
    topology: Topology
    device: torch.device
    stop: runtime.StopRequest


class Seconds:
    """The seconds of a consumer, by what it spends them on: activations, codes, reading, tables."""

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Time what the body does."""
        began = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - began

    def lap(self, what: str) -> None:
        """Count all since the last lap."""
        now = time.perf_counter()
        self._spent[what], self._since = now - self._since, now

    def in_words(self, waits: bool) -> str:
        """Return the seconds in a line; `waits`: other ranks run the model."""
        spent = self._spent
        parts = spent["activations"] + spent["codes"]
        more = (spent["reading"] + spent["tables"]) / max(parts, 1e-9)
        first = "waiting for activations" if waits else "model"
        return (
            f"{first} {spent['activations']:.1f} s, codes {spent['codes']:.1f} s; read in "
            f"{spent['reading']:.1f} s, tables in {spent['tables']:.1f} s: {more:.2f}x of the two"
        )


class Reading:
    """The walk of one consumer through the text: window by window, in step with the others."""

    def __init__(self, each: Pass, chunks: ChunkSource, clock: Seconds):
        self._pass, self._clock, topology = each, clock, each.topology
        latents = each.sae.num_latents // topology.num_shards
        self._first_latent = topology.shard.rank * latents
        mine = each.sae.tile(slice(self._first_latent, self._first_latent + latents))
        master = Precision.of(each.cfg.precision).master
        held = mine.to(each.device, master)
        held.W_enc_FD = held.W_enc_FD.contiguous()
        name = "triton" if each.device.type == "cuda" and triton_problem() is None else "torch"
        self._encoder = ShardEncoder(held, topology.shard, choose_kernels(name))
        self._dtype, self._width = master, held.width
        self._done = Done.of(each.folder)
        self._lanes = topology.lanes_of_consumer(topology.index, each.plan.lanes)
        reads = [] if self._done.over else self._lanes
        self._open = {lane: chunks.open(lane, self._done.starts.get(lane)) for lane in reads}
        self._starts = {lane: self._done.starts[lane] for lane in self._lanes if lane in self._done.starts}
        for lane in self._starts.keys() & self._open.keys():
            next(self._open[lane], None)  # it was counted before

    def read(self) -> int:
        """Read all windows that are not done; return how many there are.

        Raises:
            Preempted: a signal asked to stop; windows that are done stay so.
        """
        plan, topology = self._pass.plan, self._pass.topology
        rows = plan.lanes * plan.rows
        left = (plan.windows - self._done.windows) * plan.window
        steps = self._steps()
        for _ in reported(steps, lambda _: rows, left * rows, "tokens read") if topology.leads else steps:
            pass
        return self._done.windows

    def _steps(self) -> Iterator[int]:
        """Read chunk after chunk of all lanes, and yield the number of each."""
        each, plan, topology = self._pass, self._pass.plan, self._pass.topology
        while not self._done.over:
            codes, window = WindowCodes(), self._done.windows
            for index in range(window * plan.window, (window + 1) * plan.window):
                self._check_stop()
                for row_P, latent_P, code_P in self._round(index):
                    codes.add(row_P, latent_P + self._first_latent, code_P)
                yield index
            codes.write(each.folder, window, topology.index)
            told = topology.consumers.gather_json([bool(self._open), list(self._starts.items())])
            over = window + 1 == plan.windows or not any(going for going, _ in told)
            starts = {lane: start for _, part in told for lane, start in part}
            self._done = Done(window + 1, starts, over)
            if topology.leads:
                self._done.write(each.folder)

    def _round(self, index: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield row, latent and code, on the host, of the codes of one chunk of every lane of the replica."""
        topology, plan, shard = self._pass.topology, self._pass.plan, self._pass.topology.shard
        for first in range(0, plan.lanes, topology.num_consumers):
            with self._clock("activations"):
                chunk = self._next(first + topology.index, index)
            there = 0 if chunk is None else plan.rows - chunk.repeated
            count_S = shard.gather_rows(torch.tensor([there], device=self._pass.device))
            if not bool(count_S.any()):
                continue
            x_RD = torch.zeros(plan.rows, self._width, dtype=self._dtype, device=self._pass.device)
            if chunk is not None:
                x_RD[:there] = chunk.rows_RD[:there, : self._width].to(self._pass.device, self._dtype)
            with self._clock("codes"):
                codes = self._encoder.codes(shard.gather_rows(x_RD))
            row_P = rows_of(codes)
            rank_P, within_P = row_P // plan.rows, row_P % plan.rows
            number = index * plan.lanes + first + topology.index - shard.rank
            kept_P = within_P < count_S[rank_P]
            row_P = (number + rank_P) * plan.rows + within_P
            yield row_P[kept_P].cpu(), codes.latent_P[kept_P].cpu(), codes.value_P[kept_P].cpu()

    def _next(self, lane: int, index: int) -> ActivationChunk | None:
        """Return a lane's next chunk; None: it has ended, or there is no such lane."""
        number = index * self._pass.plan.lanes + lane
        if lane not in self._open or number >= self._pass.plan.chunks:
            return None
        chunk = next(self._open[lane], None)
        if chunk is None:
            del self._open[lane]
            return None
        self._starts[lane] = chunk.start
        return chunk

    def _check_stop(self) -> None:
        wanted = torch.tensor([int(self._pass.stop.wanted)], device=self._pass.device)
        if int(self._pass.topology.consumers.max(wanted)):
            raise Preempted(GO_ON)
