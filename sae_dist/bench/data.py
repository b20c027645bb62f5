"""The activations of a benchmark: harvested once, shuffled once, the same rows for every contestant.

data/train.npy      [N, D] float32, mean norm sqrt(D), in a fixed random order
data/test.npy       [M, D] float32, the same scale, from held-out documents
data/order_<s>.npy  the number of the row at every place of a run with seed s: the very order in which
                    `sae-dist train` draws them from this file
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from sae_dist.bench.plan import CHUNK_ROWS, LANES, Plan, write_json
from sae_dist.core.config import LlmConfig, RunConfig, TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.capture import LlmChunkSource, spare_rows
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.tokens.source import open_tokens
from sae_dist.transport.file import FileChunkSource

HARVEST_ROWS = 1024
SAID_EVERY = 200 * HARVEST_ROWS
Rows = Callable[[bool], Iterator[torch.Tensor]]
"""Batches [R, D] of activations: of held-out documents (True) or of the others."""


def prepare_data(plan: Plan, rows: Rows | None = None) -> Path:
    """The folder with train.npy and test.npy, made if they are not there yet.

    Args:
        rows: where activations come from; None: the plan's LLM.

    Raises:
        ConfigError: the source has too few rows.
    """
    folder = plan.folder / "data"
    done = folder / "data.json"
    if not done.exists():
        folder.mkdir(exist_ok=True)
        rows = rows or llm_rows(plan)
        facts = {}
        for name, held_out, wanted in (
            ("test", True, plan.test_rows),
            ("train", False, file_rows(plan.tokens, plan.batch)),
        ):
            facts[name] = write_rows(folder / f"{name}.npy", rows(held_out), wanted, name)
        rescale(folder)
        write_json(done, facts)
    return folder


def file_rows(tokens: int, batch: int) -> int:
    """Rows of a file from which a run of `tokens` draws no row twice.

    Our reader holds out one chunk in eight, and reads ahead: up to three blocks of two chunks in each lane.
    """
    per_lane = -(-(tokens // batch * batch) // LANES // CHUNK_ROWS) + 7
    chunks = per_lane * LANES
    while (missing := per_lane * LANES - len(_source(chunks * CHUNK_ROWS).places)) > 0:
        chunks += missing
    return chunks * CHUNK_ROWS


def order_file(plan: Plan, seed: int) -> Path:
    """data/order_<seed>.npy, int64 [tokens]."""
    path = plan.folder / "data" / f"order_{seed}.npy"
    if not path.exists():
        N = len(np.load(plan.folder / "data" / "train.npy", mmap_mode="r"))
        order = run_order(N, plan, seed)
        temporary = path.with_name(f".{path.name}")
        with open(temporary, "wb") as file:
            np.save(file, order)
        temporary.rename(path)
    return path


def run_order(num_rows: int, plan: Plan, seed: int) -> np.ndarray:
    """Row numbers in the order of a run of ours over a file of `num_rows` rows."""
    shuffle = Shuffle(
        _source(num_rows, seed),
        list(range(LANES)),
        num_lanes=LANES,
        rows_per_step=plan.batch,
        steps=plan.steps,
        seed=seed,
        block_chunks=RunConfig().shuffle.block_chunks,
    )
    order = torch.cat([shuffle.draw(step)[1] for step in range(plan.steps)]).numpy()
    assert len(np.unique(order)) == len(order), "file_rows leaves room for every lane"
    return order


def _source(num_rows: int, seed: int = 0) -> FileChunkSource:
    """Our reader over a file of this many rows; its chunks say which rows they hold."""
    return FileChunkSource(
        torch.zeros(num_rows, 1),
        lanes=LANES,
        rows=CHUNK_ROWS,
        seed=seed,
        held_out=False,
        dtype=torch.float32,
    )


def llm_rows(plan: Plan) -> Rows:
    """Activations of the plan's LLM over Python's own text, each document once."""
    cfg = RunConfig(hook=plan.hook, llm=LlmConfig(name=plan.llm), tokens=TokensConfig(kind="text", epochs=1))
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    cfg.tokens = dataclasses.replace(cfg.tokens, context=min(facts.context or 256, 256))
    device = torch.device(plan.device)
    llm = FrozenLlm.load(cfg.llm, facts, device=device, dtype=torch.float32, with_head=False)
    spare = spare_rows(HARVEST_ROWS, cfg.tokens.max_norm_multiple)

    def rows(held_out: bool) -> Iterator[torch.Tensor]:
        total = HARVEST_ROWS + spare
        tokens = open_tokens(cfg.tokens, facts, lanes=1, seed=0, rows=total, held_out=held_out)
        source = LlmChunkSource(
            llm, tokens, rows=HARVEST_ROWS, spare=spare, max_norm_multiple=cfg.tokens.max_norm_multiple
        )
        with torch.no_grad():
            for chunk in source.open(0, None):
                yield chunk.rows_RD

    return rows


def write_rows(path: Path, batches: Iterator[torch.Tensor], wanted: int, name: str) -> int:
    """Write `wanted` rows, each at its place in a fixed permutation; returns how many."""
    drawn = np.random.Philox(seed=[7, wanted]).random_raw(wanted)
    place = np.argsort(drawn, kind="stable")
    out, have = None, 0
    for batch in batches:
        block = batch[: wanted - have].to("cpu", torch.float32).numpy()
        if out is None:
            out = open_memmap(path, mode="w+", dtype=np.float32, shape=(wanted, block.shape[1]))
        out[place[have : have + len(block)]] = block
        have += len(block)
        if have // SAID_EVERY > (have - len(block)) // SAID_EVERY or have == wanted:
            print(f"harvest: {name}.npy {have:,} of {wanted:,} rows", file=sys.stderr, flush=True)
        if have == wanted:
            return wanted
    raise ConfigError(
        f"the text that this Python carries gives {have:,} activations for {name}.npy, and {wanted:,} are "
        "needed; use fewer --tokens"
    )


def rescale(folder: Path) -> None:
    """Bring both files to a mean norm of sqrt(D), by the factor of the training rows."""
    train, test = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("train", "test"))
    blocks = [slice(first, first + 65536) for first in range(0, len(train), 65536)]
    total = sum(float(np.linalg.norm(train[block], axis=1).sum(dtype=np.float64)) for block in blocks)
    factor = np.float32(train.shape[1] ** 0.5 * len(train) / total)
    for array in (train, test):
        for first in range(0, len(array), 65536):
            array[first : first + 65536] *= factor
        array.flush()


def describe(plan: Plan) -> str:
    """One line for the report."""
    facts = json.loads((plan.folder / "data" / "data.json").read_text(encoding="utf-8"))
    return (
        f"{plan.llm}, {plan.hook}, Python's own text; {plan.steps * plan.batch:,} training activations, "
        f"batch {plan.batch}, {facts['test']:,} held-out activations from documents never trained on"
    )
