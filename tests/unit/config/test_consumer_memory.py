"""The formula for a consumer's memory, against what a process holds."""

import ctypes
import gc
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch

from sae_dist.bench.scaling import RandomRows, only_rank
from sae_dist.config.needs import consumer_memory
from sae_dist.config.resolve import resolve
from sae_dist.config.run import Single, narrowed, save_config
from sae_dist.launch.compose import compose_config
from sae_dist.train.build import build_runs
from tests.helpers.ranks import close_worlds, run_ranks

WIDTH, STEPS, DRAWS = 256, 4, 60
SMALL = ["sae.num_latents=512", "sae.k=8", "shuffle.chunk_rows=16", "shuffle.lanes=8", "batch=128"]


def config(overrides: list[str]) -> Single:
    words = [*SMALL, "activations=file", "activations.path=x", "metrics.wandb=off", "metrics.console=false"]
    return narrowed(Single, resolve(compose_config([*words, "device=cpu", *overrides]), None, WIDTH))


def steps(cfg: Single) -> int:
    """Train a little; the bytes that the process holds while the run is still there."""
    source = RandomRows(WIDTH, cfg.shuffle.chunk_rows)
    with tempfile.TemporaryDirectory() as folder:
        save_config(cfg, Path(folder) / "config.yaml")
        rank = only_rank(cfg, Path(folder), torch.device("cpu"))
        (run,) = build_runs(rank, [Path(folder)], source)
        for step in range(DRAWS):
            batch = run.next_batch()
            run.progress.tokens += cfg.batch
            run.progress.step += 1
            if step >= STEPS:
                continue
            terms = run.dictionary.loss(batch.x_BD, run.progress.tokens, True)
            run.optimizer.step(terms.total, 1e-3)
        run.meter.close()
        del batch, terms
        return resident()


def resident() -> int:
    """Bytes that this process holds, without what it has freed and kept."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def growth(overrides: list[str]) -> int:
    """Bytes that a run of this config holds beyond what a tiny one left behind."""
    steps(config([]))
    before = resident()
    return steps(config(overrides)) - before


CASES = {
    "adam": ["sae.num_latents=49152"],
    "row_adam": ["sae.num_latents=49152", "optim=row_adam"],
    "blocks": ["shuffle.chunk_rows=1024", "shuffle.lanes=24", "shuffle.block_chunks=8", "batch=6144"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_consumer_holds_what_the_formula_says(case):
    # In a process of its own: what another test left free would be used first.
    close_worlds()
    said = consumer_memory(config(CASES[case]), WIDTH, WIDTH)
    held = run_ranks(growth, 1, CASES[case])[0]
    total = said.dictionary + said.rows
    assert total > 280 * 2**20
    assert (said.rows if case == "blocks" else said.dictionary) > 0.9 * total
    assert abs(held / total - 1) < 0.1
