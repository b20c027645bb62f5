"""The benchmark of mixing: how well the shuffle mixes by block size, its memory, its effect on FVU.

Two rows of one document resemble each other. A batch of B rows in which a row has m partners from its own
document, with intraclass correlation r, says about as much as B / (1 + m r) independent rows.

Letters: as core.types; G documents of a batch.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from sae_dist.bench.quality.plan import make_bench_folder
from sae_dist.config.needs import consumer_memory
from sae_dist.config.resolve import resolve
from sae_dist.config.run import Resolved, RunConfig, Single, narrowed
from sae_dist.core.run_folder import METRICS, SUMMARY, read_summary
from sae_dist.core.text import GIB
from sae_dist.core.types import ActivationChunk, Position
from sae_dist.launch.compose import compose_config
from sae_dist.launch.run import train_command
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.metrics.jsonl import read_rows
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.train.sources import build_source

HEAD = (
    "block_chunks",
    "chunk_rows",
    "partners per row",
    "ideal",
    "correlation",
    "effective rows",
    "GiB of waiting rows",
    "FVU",
    "dead",
)


@dataclass(frozen=True)
class MixingPlan:
    """The settings to measure: every block size with the first chunk size, and the other way round.

    train   length of a run of the default configuration at each setting; 0: none
    """

    folder: Path
    blocks: tuple[int, ...]
    chunk_rows: tuple[int, ...]
    tokens: int
    train: int
    device: str


@dataclass
class Pool:
    """The chunks read so far, by lane and number: documents of rows, and activations if asked for."""

    source: LlmChunkSource
    lanes: int
    with_rows: bool
    width: int = 1

    def __post_init__(self) -> None:
        self.chunks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.reading = {lane: self.source.tokens.open(lane, None) for lane in range(self.lanes)}

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield chunks as `core.types.ChunkSource`; ids are numbers of documents."""
        index = start["chunk"] if start else 0
        while True:
            if (lane, index) not in self.chunks:
                self.chunks[lane, index] = self._next(lane)
            rows_RD, document_R = self.chunks[lane, index]
            yield ActivationChunk(index, lane, rows_RD, document_R, {"chunk": index})
            index += 1

    def _next(self, lane: int) -> tuple[Tensor, Tensor]:
        chunk = next(self.reading[lane])  # type: ignore[call-overload]
        document_R = chunk.document_NS[chunk.keep_NS][: self.source.rows] * self.lanes + lane
        if not self.with_rows:
            return torch.zeros(len(document_R), 1), document_R
        return self.source.llm.activations(chunk)[: self.source.rows].bfloat16().cpu(), document_R


def run_mixing(plan: MixingPlan) -> str:
    """Measure every setting; write mixing.csv and mixing.md; return the table."""
    make_bench_folder(plan.folder)
    rows: list[tuple[str, ...]] = []
    for chunk_rows in plan.chunk_rows:
        composed = with_shuffle(plan, 1, chunk_rows)
        facts, _ = llm_facts(composed.llm, composed.hook, composed.target_hook)
        cfg = narrowed(Single, resolve(composed, facts, facts.width))
        source = build_source(cfg, facts, torch.device(plan.device))
        assert isinstance(source, LlmChunkSource)
        labels, acts = (Pool(source, cfg.shuffle.lanes, kept) for kept in (False, True))
        for block in plan.blocks if chunk_rows == plan.chunk_rows[0] else plan.blocks[:1]:
            cfg.shuffle.block_chunks = block
            partners, ideal = partners_in_batch(labels, cfg, plan.tokens)
            correlation = intraclass(*second_block(acts, cfg))
            held = consumer_memory(cfg, facts.width, facts.width).lanes
            fvu, dead = trained_run(plan, block, chunk_rows) if plan.train else ("", "")
            effective = cfg.batch / (1 + partners * max(correlation, 0.0))
            row = (str(block), str(chunk_rows), f"{partners:.1f}", f"{ideal:.1f}", f"{correlation:.3f}")
            rows.append((*row, f"{effective:.0f}", f"{held / GIB:.2f}", fvu, dead))
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
            write_mixing_tables(plan, rows)
    return (plan.folder / "mixing.md").read_text(encoding="utf-8")


def with_shuffle(plan: MixingPlan, block: int, chunk_rows: int) -> RunConfig:
    """Return the default configuration with another shuffle."""
    words = [f"shuffle.block_chunks={block}", f"shuffle.chunk_rows={chunk_rows}", f"device={plan.device}"]
    return compose_config(words)


def shuffle_of(pool: Pool, cfg: Resolved, steps: int) -> Shuffle:
    """Return all lanes of a run, in one process."""
    lanes = cfg.shuffle.lanes
    return Shuffle(
        pool,
        list(range(lanes)),
        num_lanes=lanes,
        rows_per_step=cfg.batch,
        steps=steps,
        seed=cfg.seed,
        block_chunks=cfg.shuffle.block_chunks,
    )


def partners_in_batch(pool: Pool, cfg: Resolved, tokens: int) -> tuple[float, float]:
    """Count the rows of its own document that a row meets in its batch.

    Returns:
        The mean, and what it would be if the whole run were shuffled at once.
    """
    steps = tokens // cfg.batch
    shuffle = shuffle_of(pool, cfg, steps)
    drawn = [shuffle.draw(step)[1] for step in range(steps)]
    all_rows = torch.cat(drawn)
    ideal = same_document(all_rows) * (cfg.batch - 1) / (len(all_rows) - 1)
    return mean(same_document(batch) for batch in drawn), ideal


def same_document(document_B: Tensor) -> float:
    """Count the other rows of a row's document, on average over rows."""
    counts = document_B.unique(return_counts=True)[1].double()
    return float((counts * (counts - 1)).sum() / counts.sum())


def second_block(pool: Pool, cfg: Resolved) -> tuple[Tensor, Tensor]:
    """Draw a batch from the beginning of each lane's second block, the first made of two groups."""
    shuffle = shuffle_of(pool, cfg, 10**6)
    state = {"block": 1, "offset": 0, "handed": 0, "start": None, "counts": [0, 0, 0]}
    shuffle.restore({str(lane.lane): state for lane in shuffle.lanes})
    return shuffle.draw(0)


def intraclass(x_BD: Tensor, document_B: Tensor) -> float:
    """Estimate the intraclass correlation by document, one-way, summed over dimensions (Fisher 1925)."""
    x_BD = x_BD.double()
    _, group_B, count_G = document_B.unique(return_inverse=True, return_counts=True)
    groups, rows = len(count_G), len(x_BD)
    if groups in (1, rows):
        return 0.0
    mean_GD = x_BD.new_zeros(groups, x_BD.shape[1]).index_add_(0, group_B, x_BD) / count_G[:, None]
    between = float(((mean_GD - x_BD.mean(0)).square().sum(1) * count_G).sum()) / (groups - 1)
    within = float((x_BD - mean_GD[group_B]).square().sum()) / (rows - groups)
    size = (rows - float(count_G.square().sum()) / rows) / (groups - 1)
    return (between - within) / (between + (size - 1) * within)


def trained_run(plan: MixingPlan, block: int, chunk_rows: int) -> tuple[str, str]:
    """Train a run unless that is done; return held-out FVU, and the share of dead latents at its end."""
    name = f"block{block}-rows{chunk_rows}-{plan.train}"
    run = plan.folder / "mixing" / name
    if not (run / SUMMARY).exists():
        shuffle = [f"shuffle.block_chunks={block}", f"shuffle.chunk_rows={chunk_rows}"]
        words = ["eval.ce_tokens=0", "eval.baselines=false", "metrics.wandb=off", "metrics.console=false"]
        length = [f"train_tokens={plan.train}", f"device={plan.device}", "checkpoint.every=null"]
        train_command([*shuffle, *words, *length, f"output='{run.parent}'", f"name={name}", "resume=auto"])
    summary = read_summary(run)
    last = read_rows(run / METRICS)[-1]
    dead = summary["dead_fraction"]
    return f"{summary['fvu']:.4f}", f"{last['latents/dead_fraction'] if dead is None else dead:.2%}"


def write_mixing_tables(plan: MixingPlan, rows: list[tuple[str, ...]]) -> None:
    """Write mixing.csv and mixing.md."""
    with open(plan.folder / "mixing.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEAD, *rows])
    lines = [f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *rows)]
    (plan.folder / "mixing.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
