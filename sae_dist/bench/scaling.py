"""The benchmark of scaling: how the cost of a training step grows with the number of latents.

Times our own step (forward, backward, update; TopK) on random rows, alternated in one process with the bare
product of the encoder, x W_enc^T, so that both meet the same machine. AuxK is at rest: no latent is dead yet.
"""

import csv
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from sae_dist.bench.peers.step_io import seconds_of
from sae_dist.bench.quality.plan import make_bench_folder
from sae_dist.config.resolve import resolve
from sae_dist.config.run import Resolved, save_config
from sae_dist.config.sections import SaeConfig
from sae_dist.core.place import place
from sae_dist.core.run_folder import CONFIG
from sae_dist.core.text import columns
from sae_dist.core.types import ActivationChunk, Position
from sae_dist.distributed import runtime
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.launch.compose import compose_config
from sae_dist.metrics.clock import PhaseClock
from sae_dist.metrics.stolen import Stolen
from sae_dist.train.build import build_runs
from sae_dist.train.speed import Watch
from sae_dist.train.state import Rank, Run

WIDTHS = (4096, 16384, 65536, 262144)
TILE = 16384
WARMUP = 2
HEAD = ("latents", "steps", "us/token", "ns/token/latent", "encoder us/token", "step/encoder")


@dataclass(frozen=True)
class Cost:
    """The median seconds of a step and of the encoder at one number of latents."""

    latents: int
    steps: int
    step_s: float
    encoder_s: float
    batch: int

    def row(self) -> tuple[str, ...]:
        """Format the numbers, in the order of HEAD."""
        per_token = 1e6 * self.step_s / self.batch
        return (
            str(self.latents),
            str(self.steps),
            f"{per_token:.2f}",
            f"{1e3 * per_token / self.latents:.3f}",
            f"{1e6 * self.encoder_s / self.batch:.2f}",
            f"{self.step_s / self.encoder_s:.2f}",
        )


class RandomRows:
    """Chunks of normal rows; see `core.types.ChunkSource`."""

    def __init__(self, width: int, rows: int):
        self.width, self.rows = width, rows

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield chunks without end; the same lane gives the same ones."""
        draw = torch.Generator().manual_seed(lane)
        index = start["chunk"] if start else 0
        while True:
            rows = torch.randn(self.rows, self.width, generator=draw)
            yield ActivationChunk(index, lane, rows, torch.arange(self.rows), {"chunk": index})
            index += 1


def run_scaling(folder: Path, widths: tuple[int, ...], *, width: int, k: int, batch: int, device: str) -> str:
    """Time every number of latents; write scaling.csv and return the table.

    Args:
        width: D of the rows.
    """
    make_bench_folder(folder)
    costs: list[Cost] = []
    stolen = Stolen()
    where = runtime.start(place(), device, 600.0)
    try:
        for latents in widths:
            costs.append(time_width(latents, width=width, k=k, batch=batch, device=where))
            print(f"{latents} latents: {costs[-1].row()[2]} us/token", file=sys.stderr, flush=True)
            with open(folder / "scaling.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([HEAD, *(cost.row() for cost in costs)])
    finally:
        runtime.finish()
    title = f"D = {width}, k = {k}, batch {batch}, {where.type}, {torch.get_num_threads()} threads"
    return f"{title}{stolen.remark()}\n{format_costs(costs)}\n{folder / 'scaling.csv'}"


def time_width(latents: int, *, width: int, k: int, batch: int, device: torch.device) -> Cost:
    """Time steps and encoder products in turn; the more latents, the fewer."""
    steps = max(5, min(30, 30 * 16384 // latents))
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), latents, width=width, k=k, batch=batch, device=device)
        encoder = EncoderProduct(latents, width, batch, device)
        own, bare = [], []
        for turn in range(steps + WARMUP):
            x_BD = run.next_batch().x_BD
            run.progress.step += 1
            run.progress.tokens += batch
            step_s = seconds_of(partial(one_step, run, x_BD), device)
            encoder_s = seconds_of(encoder, device)
            if turn >= WARMUP:
                own.append(step_s)
                bare.append(encoder_s)
    return Cost(latents, steps, median(own), median(bare), batch)


def make_run(folder: Path, latents: int, *, width: int, k: int, batch: int, device: torch.device) -> Run:
    """Build a run with the default dictionary and optimizer over random rows."""
    composed = compose_config([f"device={device.type}", f"batch={batch}", "metrics.wandb=off"])
    composed.sae = SaeConfig(**{**vars(composed.sae), "num_latents": latents, "k": k})
    composed.metrics.console = False
    cfg = resolve(composed, None, width)
    save_config(cfg, folder / CONFIG)
    rank = only_rank(cfg, folder, device)
    (run,) = build_runs(rank, [folder], RandomRows(width, cfg.shuffle.chunk_rows))
    return run


def only_rank(cfg: Resolved, folder: Path, device: torch.device) -> Rank:
    """Return the only process of a run that needs no LLM, within a process group of one."""
    where = place()
    topology = Topology(cfg.topology, where, device.type)
    control, watch = Control(cfg.topology.timeout_s), Watch(PhaseClock(device))
    return Rank(cfg, folder, None, where, topology, device, runtime.StopRequest(), control, watch)


def one_step(run: Run, x_BD: torch.Tensor) -> None:
    """Train on a batch as `train.loop` does, without its bookkeeping."""
    terms = run.dictionary.loss(x_BD, run.progress.tokens, False)
    run.optimizer.step(terms.total, run.lr)


class EncoderProduct:
    """The product x W^T in tiles of latents, each into the same memory."""

    def __init__(
        self,
        latents: int,
        width: int,
        batch: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.W_FD = torch.randn(latents, width, device=device).to(dtype)
        self.x_BD = torch.randn(batch, width, device=device).to(dtype)
        self.out = torch.empty(batch, min(TILE, latents), device=device, dtype=dtype)

    def __call__(self) -> None:
        for first in range(0, len(self.W_FD), TILE):
            tile = self.W_FD[first : first + TILE]
            torch.mm(self.x_BD, tile.T, out=self.out[:, : len(tile)])


def format_costs(costs: list[Cost]) -> str:
    """Format the table, and how a step's time grows from the fewest to the most latents."""
    rows = [HEAD, *(cost.row() for cost in costs)]
    lines = columns(rows, left=0)
    if len(costs) > 1:
        first, last = costs[0], costs[-1]
        power = math.log(last.step_s / first.step_s) / math.log(last.latents / first.latents)
        lines.append(f"time ~ latents^{power:.2f} from {first.latents} to {last.latents} (1: linear)")
    return "\n".join(lines)
