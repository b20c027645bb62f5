"""compose -> facts -> resolve -> validate -> freeze -> spawn here, or join -> export -> evaluate."""

import dataclasses
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.core.config import RunConfig, load_config
from sae_dist.core.errors import ConfigError, NumericsError, Preempted, SaeDistError
from sae_dist.core.resolve import parse_counts, resolve
from sae_dist.core.sharding import world_formula, world_size_of
from sae_dist.core.validate import validate
from sae_dist.launch.compose import compose_config, expand, sweep_keys
from sae_dist.launch.freeze import CONFIG, Frozen, freeze

if TYPE_CHECKING:
    from sae_dist.core.types import LlmFacts


def train_command(overrides: list[str]) -> None:
    """`sae-dist train`: one run, from its overrides to its table.

    Raises:
        SaeDistError: see `core.errors`; input found wrong leaves nothing behind.
    """
    if launched():
        train_joined(overrides)
        return
    frozen = prepare(overrides, None)
    if frozen.finished:
        return
    with leaving_nothing(frozen):
        train_here(frozen.folder)
    finish(frozen.folder)


def train_joined(overrides: list[str]) -> None:
    """Be one of the ranks that a launcher started.

    Raises:
        SaeDistError: this rank's own; what all ranks raise alike is said by rank 0 alone.
    """
    from sae_dist.dist.runtime import place
    from sae_dist.launch.join import SaidByRankZero, agree_on_run

    where = place()
    frozen = agree_on_run(where, lambda: prepare(overrides, where.world))
    if frozen.finished:
        return
    try:
        with leaving_nothing(frozen):
            run_rank(frozen.folder)
    except (NumericsError, Preempted) as error:
        if where.rank:
            raise SaidByRankZero(error.exit_code) from None
        raise
    if where.rank == 0:
        finish(frozen.folder)


@contextmanager
def leaving_nothing(frozen: Frozen) -> Iterator[None]:
    """Input that a rank finds wrong leaves no new folder behind."""
    try:
        yield
    except SaeDistError as error:
        if error.exit_code == ConfigError.exit_code:
            frozen.discard()
        raise


def multirun_command(overrides: list[str]) -> None:
    """`sae-dist train -m`: the product of the comma lists, one run after the other.

    Raises:
        SaeDistError: of the first run that fails; every config is composed before the first run starts.
    """
    if launched():
        raise ConfigError("-m starts its own processes; run it without a launcher around it")
    keys, jobs = sweep_keys(overrides), expand(overrides)
    configs = [composed(job) for job in jobs]
    for cfg in configs:
        validate(cfg)
    base = configs[0]
    sweep = base.name or "sweep_" + "_".join(key.split(".")[-1] for key in keys)
    for number, job in enumerate(jobs):
        chosen = [text for text in job if text.split("=")[0] in keys]
        name = re.sub(r"[^A-Za-z0-9._=,-]+", "_", ",".join(chosen)) or str(number)
        print(f"[{number + 1}/{len(jobs)}] {' '.join(chosen)}", file=sys.stderr, flush=True)
        rest = [text for text in job if not text.startswith(("name=", "output="))]
        train_command([*rest, f"output={Path(base.output) / sweep}", f"name='{name}'"])


def launched() -> bool:
    """Whether torchrun or a Slurm step of several tasks started this process.

    A Slurm batch script has SLURM_PROCID too and is no rank. The same rule as `dist.runtime.place`, here
    without torch: wrong input is answered before that is imported.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_STEP_ID" in os.environ else 1
    return ("RANK" in os.environ and "WORLD_SIZE" in os.environ) or tasks > 1


def prepare(overrides: list[str], world_size: int | None) -> Frozen:
    """Check everything that can be checked before a process starts, and freeze the run folder.

    Args:
        world_size: ranks that a launcher started; None: this command starts its own.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    cfg = composed(overrides)
    validate(cfg, world_size)
    cfg, width, note = settle(cfg)
    validate(cfg, world_size)
    check_devices(cfg, world_size)
    frozen = freeze(cfg, width)
    if note:
        print(note, file=sys.stderr)
    if frozen.finished:
        print(f"{frozen.folder} is finished; see summary.json there, or choose another name")
    return frozen


def composed(overrides: list[str]) -> RunConfig:
    """The config with its counts parsed; trained from a cache, with what that settles.

    Raises:
        ConfigError: see `compose_config` and `from_cache`.
    """
    cfg = parse_counts(compose_config(overrides))
    if cfg.activations.kind == "cache" and cfg.activations.path:
        from sae_dist.launch.cached import from_cache

        return from_cache(cfg, overrides)
    return cfg


def settle(cfg: RunConfig) -> tuple[RunConfig, int, str | None]:
    """The config with nothing left open, the width of the rows that flow, and how hooks' names were read.

    Opens the source of data and reads a chunk of tokens: what is wrong with it shows here.

    Raises:
        ConfigError: the model, the hook or the source of data is wrong.
    """
    if cfg.activations.kind == "file":
        import torch

        from sae_dist.transport.file import FileChunkSource, open_array

        array = open_array(cfg.activations.path or "", cfg.activations.key)
        lanes, rows = cfg.shuffle.lanes, cfg.shuffle.chunk_rows
        source = FileChunkSource(array, lanes=lanes, rows=rows, seed=0, held_out=False, dtype=torch.float32)
        cfg.shuffle.chunk_rows = source.rows
        return resolve(cfg, None, source.width), source.width, None
    if cfg.activations.kind == "synthetic":
        from sae_dist.transport.ground_truth import GroundTruth

        width = GroundTruth.of(cfg.activations, cfg.seed).width
        return resolve(cfg, None, width), width, None
    if cfg.activations.kind == "cache":
        from sae_dist.launch.cached import settle_cached

        return settle_cached(cfg)
    from sae_dist.dist.runtime import place
    from sae_dist.llm.facts import llm_facts
    from sae_dist.llm.fit import check_memory
    from sae_dist.llm.tensor_parallel import check_plan

    facts, note = llm_facts(cfg.llm, cfg.hook, cfg.target_hook)
    cfg = resolve(cfg, facts, facts.width)
    check_plan(cfg.llm, facts)
    check_memory(cfg, facts, place().local_world if launched() else None)
    check_tokens(cfg, facts)
    return cfg, facts.columns, note


def check_tokens(cfg: RunConfig, facts: "LlmFacts") -> None:
    """Read the first chunk to train on, and the first held-out one as evaluation will.

    Raises:
        ConfigError: the source of tokens is wrong, or has too little to evaluate on.
    """
    from sae_dist.llm.capture import spare_rows
    from sae_dist.tokens.source import open_tokens

    rows = cfg.shuffle.chunk_rows + spare_rows(cfg.shuffle.chunk_rows, cfg.tokens.max_norm_multiple)
    lanes = cfg.shuffle.lanes
    tokens = open_tokens(cfg.tokens, facts, lanes=lanes, seed=cfg.seed, rows=rows, held_out=False)
    next(tokens.open(0, None), None)
    if cfg.eval.tokens == 0:
        return
    once = dataclasses.replace(cfg.tokens, epochs=1)
    tokens = open_tokens(once, facts, lanes=1, seed=cfg.seed, rows=rows, held_out=True)
    if next(tokens.open(0, None), None) is None:
        raise ConfigError(
            f"{tokens.field}: the held-out part (one document in eight) has too little text for one chunk of "
            f"shuffle.chunk_rows={cfg.shuffle.chunk_rows}; give more text, make shuffle.chunk_rows smaller, "
            "or switch evaluation off with eval.tokens=0 eval.ce_tokens=0"
        )


def check_devices(cfg: RunConfig, world_size: int | None) -> None:
    """Every rank that this command starts needs a GPU of its own.

    Raises:
        ConfigError: there are fewer.
    """
    if cfg.device != "cuda" or world_size is not None:
        return
    import torch

    needed, found = world_size_of(cfg), torch.cuda.device_count()
    if needed > found:
        raise ConfigError(
            f"device=cuda: {world_formula(cfg)} = {needed} processes need a GPU each, and there are {found}; "
            "use fewer, or device=cpu"
        )


def train_here(folder: Path) -> None:
    """Be the only rank, or start all of them on this machine and see them through."""
    world = world_size_of(load_config(folder / CONFIG))
    if world == 1:
        run_rank(folder)
        return
    from sae_dist.launch.spawn import spawn

    spawn(folder, world)


def run_rank(folder: Path) -> None:
    """One rank's training."""
    from sae_dist.train import run

    with own_signals():
        run.run_rank(folder)


@contextmanager
def own_signals() -> Iterator[None]:
    """Afterwards signals mean again what they mean elsewhere."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(folder: Path) -> dict[str, Any]:
    """Export the newest checkpoint, evaluate the export, print the table.

    Raises:
        Preempted: SIGTERM or SIGUSR2 asked to stop.
    """
    from sae_dist.analysis.run import evaluate_run
    from sae_dist.analysis.table import format_table
    from sae_dist.train.finish import export_run

    with stopping_on_request():
        export_run(folder)
        summary = evaluate_run(folder)
    print(f"{os.path.relpath(folder)}\n{format_table(summary)}")
    return summary


@contextmanager
def stopping_on_request() -> Iterator[None]:
    """After training, when nothing is left to save, a signal to stop is obeyed at once."""

    def stop(_number: int, _frame: object) -> None:
        raise Preempted("stopped after training; the same command with resume=auto evaluates it")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
