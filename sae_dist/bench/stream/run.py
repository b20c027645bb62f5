"""The benchmark of the stream from LLM to dictionary, as ratios of times taken in turn.

wire     a chunk from producer to consumer, beside the same bytes by bare isend and irecv
capture  the producer's work on a chunk, beside the bare truncated forward of transformers
split    a step of one producer and one consumer, a core each, beside the longer of the two phases of one
         process on one of these cores, alone and with another such process on the other core: cores share
         caches and memory, whoever uses them
grid     a grid of dictionaries beside the same dictionaries, each in a run of its own
"""

import csv
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sae_dist.bench.quality.plan import make_bench_folder
from sae_dist.bench.stream.capture import time_capture
from sae_dist.bench.stream.grid import time_grid
from sae_dist.bench.stream.ranks import JOB, OUT
from sae_dist.core.run_folder import METRICS
from sae_dist.core.text import columns
from sae_dist.launch.compose import compose_config
from sae_dist.launch.run import prepare
from sae_dist.launch.spawn import spawn
from sae_dist.metrics.jsonl import read_rows
from sae_dist.metrics.stolen import Stolen

HEAD = ("", "sae_dist", "against", "unit", "ratio", "lowest", "highest", "rounds")
ROW_STEPS = 10
FEW_WAIT = ("shuffle.lanes=8", "shuffle.block_chunks=1")
"""Blocks so small that a short run cannot live on what its consumer took in before the first step."""


@dataclass(frozen=True)
class StreamPlan:
    """The settings of one stream benchmark.

    rows            activations of a chunk
    widths, chunks  D of the activations on the wire, and how many chunks a round moves
    latents, batch, steps   of the runs that are timed
    llm, dictionaries       of the grid, whose dictionaries have the first number of latents
    """

    folder: Path
    parts: tuple[str, ...]
    rows: int
    widths: tuple[int, ...]
    chunks: int
    latents: tuple[int, ...]
    batch: int
    steps: int
    rounds: int
    device: str
    llm: str = "embedded"
    dictionaries: int = 8


@dataclass(frozen=True)
class StreamFigure:
    """A line of the table: two medians of times taken in turn, and the ratio of each round."""

    what: str
    unit: str
    ours: float
    against: float | None
    ratios: list[float]

    def row(self) -> tuple[str, ...]:
        """Format the numbers, in the order of HEAD."""
        ratios = self.ratios or [float("nan")]
        shown = [f"{each:.3f}" if self.ratios else "" for each in (median(ratios), min(ratios), max(ratios))]
        against = "" if self.against is None else f"{self.against:.4g}"
        return (self.what, f"{self.ours:.4g}", against, self.unit, *shown, str(len(self.ratios) or ""))


def run_stream(plan: StreamPlan) -> str:
    """Measure every part; write stream.csv and stream.md; return the table.

    Raises:
        SaeDistError: the ranks of a measurement failed.
    """
    make_bench_folder(plan.folder)
    parts: dict[str, Callable[[StreamPlan], Iterator[StreamFigure]]] = {
        "wire": wire_figures,
        "capture": capture_figures,
        "split": split_figures,
        "grid": grid_figures,
    }
    figures: list[StreamFigure] = []
    stolen = Stolen()
    for part in plan.parts:
        for figure in parts[part](plan):
            figures.append(figure)
            print("  ".join(figure.row()), file=sys.stderr, flush=True)
            write_stream_tables(plan, figures, stolen.remark())
    about = describe_measurement(plan, stolen.remark())
    return f"{about}\n{format_figures(figures)}\n{plan.folder / 'stream.md'}"


def wire_figures(plan: StreamPlan) -> Iterator[StreamFigure]:
    """Measure bytes per second of the stream, and of isend and irecv."""
    if plan.device == "cuda" and torch.cuda.device_count() < 2:
        print("wire: two ranks need two GPUs over NCCL; left out", file=sys.stderr)
        return
    for width in plan.widths:
        job = {
            "part": "wire",
            "device": plan.device,
            "cores": cores(plan),
            "rows": plan.rows,
            "width": width,
            "chunks": plan.chunks,
            "rounds": plan.rounds,
            "dtypes": ["float32", "bfloat16"],
            "in_flight": 2,
        }
        for dtype, pairs in start_ranks(2, job).items():
            mega = plan.chunks * plan.rows * width * (4 if dtype == "float32" else 2) / 1e6
            yield StreamFigure(
                f"wire, {plan.rows} x {width} {dtype}",
                "MB/s",
                mega / median(ours for ours, _ in pairs),
                mega / median(bare for _, bare in pairs),
                [bare / ours for ours, bare in pairs],
            )


def capture_figures(plan: StreamPlan) -> Iterator[StreamFigure]:
    """Measure tokens per second of the producer, and of the bare forward."""
    cfg = compose_config([f"device={plan.device}", f"shuffle.chunk_rows={plan.rows}"])
    times = time_capture(cfg, torch.device(plan.device), max(plan.chunks // 4, 5))
    tokens = cfg.shuffle.chunk_rows
    for name, added in (("forward, hooks, choice of rows", ()), ("the same with tokenising", ("tokens",))):
        ours = [sum(each) for each in zip(times["capture"], *(times[part] for part in added), strict=True)]
        yield StreamFigure(
            f"capture: {name}",
            "tokens/s",
            tokens / median(ours),
            tokens / median(times["forward"]),
            [bare / each for each, bare in zip(ours, times["forward"], strict=True)],
        )


def split_figures(plan: StreamPlan) -> Iterator[StreamFigure]:
    """Measure a step of the split topology, a colocated run's phases, and the consumer's waiting."""
    for latents in plan.latents:
        alone, beside, apart = [], [], []
        for _ in range(plan.rounds):
            alone.append(steady(train_rows(plan, latents, 0), plan.batch))
            apart.append(steady(train_rows(plan, latents, 1), plan.batch))
            if cores(plan):
                beside.append(steady(train_rows(plan, latents, 0, runs=2), plan.batch))
        what = f"split, {latents} latents"
        for against, phases in (("alone", alone), ("both cores at work", beside)):
            if phases:
                yield step_figure(f"{what}: step, against one process {against}", apart, phases)
        stalled = median(each["wait"] / each["step"] for each in apart)
        yield StreamFigure(f"{what}: consumer waited", "% of the time", 100 * stalled, None, [])


def step_figure(what: str, apart: list[dict[str, float]], phases: list[dict[str, float]]) -> StreamFigure:
    """Compare steps of two processes with the longer phase of steps of one process."""
    made = median(each["make"] for each in phases)
    rest = median(each["step"] - each["make"] for each in phases)
    longer = [max(each["make"], each["step"] - each["make"]) for each in phases]
    return StreamFigure(
        f"{what} (chunks {1e3 * made:.0f} ms, dictionary {1e3 * rest:.0f} ms)",
        "ms",
        1e3 * median(each["step"] for each in apart),
        1e3 * median(longer),
        [each["step"] / long for each, long in zip(apart, longer, strict=True)],
    )


def grid_figures(plan: StreamPlan) -> Iterator[StreamFigure]:
    """Measure the training time of a grid, that of single runs, and the share that their parts predict."""
    words = [
        f"llm={plan.llm}",
        f"sae.num_latents={plan.latents[0]}",
        f"shuffle.chunk_rows={plan.rows}",
        f"train_tokens={plan.steps * plan.batch}",
        f"batch={plan.batch}",
        f"device={plan.device}",
    ]
    saving = time_grid(words, plan.dictionaries)
    what = f"grid of {plan.dictionaries} x {plan.latents[0]} latents on {plan.llm}"
    times = (saving.grid_s, saving.alone_s)
    yield StreamFigure(f"{what}, and as many runs: training", "s", *times, [saving.share])
    if plan.device != "cpu":
        return  # the host's clock does not tell the LLM's work from the dictionaries'
    parts = f"LLM {saving.llm_s:.1f} s a run, dictionaries {saving.trained_s:.1f} s in all"
    shares = (saving.share, saving.expected)
    yield StreamFigure(
        f"{what}: that share, and by its parts ({parts})", "", *shares, [shares[0] / shares[1]]
    )


def train_rows(plan: StreamPlan, latents: int, producers: int, runs: int = 1) -> list[dict[str, Any]]:
    """Train the default configuration for a short time, each rank on one thread and one core.

    Args:
        runs: how many runs at once, of one process each, independent of each other.

    Returns:
        The rows of metrics of all runs, without the first third.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"output='{folder}'",
            f"topology.producers={producers}",
            f"sae.num_latents={latents}",
            f"shuffle.chunk_rows={plan.rows}",
            *FEW_WAIT,
            f"train_tokens={plan.steps * plan.batch}",
            f"batch={plan.batch}",
            f"metrics.every={ROW_STEPS}",
            "metrics.wandb=off",
            "metrics.console=false",
            "checkpoint.every=null",
            "eval.tokens=0",
            f"device={plan.device}",
        ]
        world = 1 + producers
        folders = [prepare([*words, f"name=run{number}"], world).folder for number in range(runs)]
        job = {"part": "train", "runs": [str(each) for each in folders], "cores": cores(plan)}
        start_ranks(world * runs, job)
        found = [read_rows(each / METRICS) for each in folders]
        # What comes first fills blocks and caches.
        return [row for rows in found for row in rows[len(rows) // 3 :]]


def steady(rows: list[dict[str, Any]], batch: int) -> dict[str, float]:
    """Return the median seconds of a step, of making its chunks, of waiting for them."""
    step = [batch / row["perf/tokens_per_second"] for row in rows]
    found = {"step": median(step)}
    for name, key in (("make", "perf/make_chunks_s"), ("wait", "perf/wait_for_chunks_s")):
        found[name] = median(row.get(key, 0.0) / ROW_STEPS for row in rows)
    return found


def start_ranks(world: int, job: dict[str, Any]) -> Any:
    """Run `bench.stream.ranks` on several ranks; return what rank 0 wrote, None if nothing.

    Raises:
        RankFailed: a rank failed, with its reason.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        spawn(folder, world, "bench")
        out = folder / OUT
        return json.loads(out.read_text(encoding="utf-8")) if out.exists() else None


def cores(plan: StreamPlan) -> list[int]:
    """Choose a core for each of two ranks; none where there are fewer, or where a GPU does the work."""
    if plan.device != "cpu" or not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[:2] if len(allowed) > 1 else []


def describe_measurement(plan: StreamPlan, remark: str) -> str:
    """Describe where and how this was measured."""
    pinned = ", a core for each rank" if cores(plan) else ""
    load = f"; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    taken = f"{plan.device}, {plan.rounds} rounds in turn, one thread{pinned}{load}"
    return f"{taken}; torch {torch.__version__}{remark}"


def write_stream_tables(plan: StreamPlan, figures: list[StreamFigure], remark: str) -> None:
    """Write stream.csv and stream.md."""
    rows = [figure.row() for figure in figures]
    with open(plan.folder / "stream.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEAD, *rows])
    head, *lines = (f"| {' | '.join(row)} |" for row in (HEAD, *rows))
    about = describe_measurement(plan, remark)
    text = "\n".join([head, "|" + "---|" * len(HEAD), *lines, "", f"{about}.", ""])
    (plan.folder / "stream.md").write_text(text, encoding="utf-8")


def format_figures(figures: list[StreamFigure]) -> str:
    """Format the table for the terminal."""
    return "\n".join(columns([HEAD, *(figure.row() for figure in figures)], left=None))
