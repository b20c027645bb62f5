"""The activations of a benchmark: harvested once, shuffled once, the same rows for every contestant.

data/train.npy      [N, D] float32, mean norm sqrt(D), in a fixed random order; zeros where our reader would
                    hold rows out for evaluation, which are never read here
data/test.npy       [M, D] float32, the same scale, from held-out documents
data/data.json      what they are made of
data/order_<s>.npy  the number of the row at every place of a run with seed s: the very order in which
                    `sae-dist train` draws them from this file
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from sae_dist.bench.quality.plan import CHUNK_ROWS, LANES, QualityPlan, make_bench_folder
from sae_dist.config.run import RunConfig
from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import replacing, write_json
from sae_dist.llm.capture import LlmChunkSource, spare_rows
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.tokens.source import open_tokens
from sae_dist.transport.file import FileChunkSource

HARVEST_ROWS = 1024
BLOCK_CHUNKS = 2
SAID_EVERY = 200 * HARVEST_ROWS
RowSource = Callable[[bool], Iterator[torch.Tensor]]
"""Batches [R, D] of activations: of held-out documents (True) or of the others."""


def prepare_data(plan: QualityPlan, rows: RowSource | None = None) -> Path:
    """Return the folder with train.npy and test.npy; make them unless they exist.

    Args:
        rows: where activations come from; None: the plan's LLM.

    Raises:
        ConfigError: the source has too few rows.
    """
    folder = plan.folder / "data"
    if not is_there(plan):
        rows = rows or rows_of_llm(plan)
        make_bench_folder(folder)
        total = rows_needed(plan.tokens, plan.batch)
        places = _source(total).places[:, None] * CHUNK_ROWS + np.arange(CHUNK_ROWS)
        write_rows(folder / "test.npy", rows(True), plan.test_rows, np.arange(plan.test_rows))
        write_rows(folder / "train.npy", rows(False), total, places.ravel())
        rescale(folder)
        for stale in folder.glob("order_*.npy"):
            stale.unlink()
        write_json(folder / "data.json", made_of(plan))
    return folder


def made_of(plan: QualityPlan) -> dict[str, Any]:
    """Return the settings that the data, and all trials on them, depend on."""
    keys = ("tokens", "batch", "test_rows", "llm", "hook", "device")
    return {key: getattr(plan, key) for key in keys}


def is_there(plan: QualityPlan) -> bool:
    """Return whether the data have been made.

    Raises:
        ConfigError: the folder holds a benchmark on other data, or something else.
    """
    path = plan.folder / "data" / "data.json"
    if path.is_file():
        before, now = json.loads(path.read_text(encoding="utf-8")), made_of(plan)
        for key, value in now.items():
            if before.get(key) != value:
                raise ConfigError(
                    f"{plan.folder} holds a benchmark with {key}={before.get(key)}, and this one has "
                    f"{key}={value}; choose another --folder"
                )
        return True
    # What `sae-dist bench peers`, `scaling` and an interrupted harvest leave is no obstacle.
    known = {"peers", "scaling.csv", "data"}
    if plan.folder.exists() and (
        not plan.folder.is_dir() or {each.name for each in plan.folder.iterdir()} - known
    ):
        raise ConfigError(f"{plan.folder} exists and is no benchmark; choose another --folder")
    return False


def rows_needed(tokens: int, batch: int) -> int:
    """Return how many rows a file needs so that a run of `tokens` draws no row twice.

    Our reader holds out one chunk in eight, and reads ahead: up to three blocks of two chunks in each lane.
    """
    per_lane = -(-(tokens // batch * batch) // LANES // CHUNK_ROWS) + 7
    chunks = per_lane * LANES
    while (missing := per_lane * LANES - len(_source(chunks * CHUNK_ROWS).places)) > 0:
        chunks += missing
    return chunks * CHUNK_ROWS


def order_file(plan: QualityPlan, seed: int) -> Path:
    """Return the path of data/order_<seed>.npy, int64 [tokens]; make it unless it exists."""
    path = plan.folder / "data" / f"order_{seed}.npy"
    if not path.exists():
        N = len(np.load(plan.folder / "data" / "train.npy", mmap_mode="r"))
        order = run_order(N, plan, seed)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, order)
    return path


def run_order(num_rows: int, plan: QualityPlan, seed: int) -> np.ndarray:
    """Return row numbers in the order in which `sae-dist train` draws them from `num_rows` rows."""
    shuffle = Shuffle(
        _source(num_rows, seed),
        list(range(LANES)),
        num_lanes=LANES,
        rows_per_step=plan.batch,
        steps=plan.steps,
        seed=seed,
        block_chunks=BLOCK_CHUNKS,
    )
    order = torch.cat([shuffle.draw(step)[1] for step in range(plan.steps)]).numpy()
    assert len(np.unique(order)) == len(order), "rows_needed leaves room for every lane"
    return order


def _source(num_rows: int, seed: int = 0) -> FileChunkSource:
    """Return our reader over a file of this many rows; its chunks say which rows they hold."""
    return FileChunkSource(
        torch.zeros(num_rows, 1),
        lanes=LANES,
        rows=CHUNK_ROWS,
        seed=seed,
        held_out=False,
        dtype=torch.float32,
    )


def rows_of_llm(plan: QualityPlan) -> RowSource:
    """Return a source of the LLM's activations over Python's own text, each document once."""
    cfg = RunConfig(hook=plan.hook, llm=LlmConfig(name=plan.llm), tokens=TokensConfig(kind="text", epochs=1))
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    cfg.tokens = dataclasses.replace(cfg.tokens, context=min(facts.context or 256, 256))
    device = torch.device(plan.device)
    llm = FrozenLlm.load(cfg.llm, facts, device=device, dtype=torch.float32, with_head=False)
    spare = spare_rows(HARVEST_ROWS, cfg.tokens)

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


def write_rows(path: Path, batches: Iterator[torch.Tensor], total: int, places: np.ndarray) -> None:
    """Write a file of `total` rows, of which those at `places` are filled, in a fixed random order."""
    wanted, name = len(places), path.name
    place = places[np.argsort(np.random.Philox(seed=[7, wanted]).random_raw(wanted), kind="stable")]
    out, have = None, 0
    for batch in batches:
        block = batch[: wanted - have].to("cpu", torch.float32).numpy()
        if out is None:
            out = open_memmap(path, mode="w+", dtype=np.float32, shape=(total, block.shape[1]))
        out[place[have : have + len(block)]] = block
        have += len(block)
        if have // SAID_EVERY > (have - len(block)) // SAID_EVERY or have == wanted:
            print(f"harvest: {name} {have:,} of {wanted:,} rows", file=sys.stderr, flush=True)
        if have == wanted:
            return
    raise ConfigError(
        f"the text that this Python carries gives {have:,} activations for {name}, and {wanted:,} are "
        "needed; use fewer --tokens"
    )


def rescale(folder: Path) -> None:
    """Scale both files to a mean norm of sqrt(D), by the factor of the training rows (zeros left out)."""
    train, test = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("train", "test"))
    total, count = 0.0, 0
    for first in range(0, len(train), 65536):
        norm = np.linalg.norm(train[first : first + 65536], axis=1)
        total += float(norm.sum(dtype=np.float64))
        count += int((norm > 0).sum())
    factor = np.float32(train.shape[1] ** 0.5 * count / total)
    for array in (train, test):
        for first in range(0, len(array), 65536):
            array[first : first + 65536] *= factor
        array.flush()


def describe(plan: QualityPlan) -> str:
    """Describe the data in one line of the report."""
    return (
        f"{plan.llm}, {plan.hook}, Python's own text; {plan.steps * plan.batch:,} training activations, "
        f"batch {plan.batch}, {plan.test_rows:,} held-out activations from documents never trained on"
    )
