"""compose -> facts -> resolve -> validate -> freeze -> spawn here, or join -> export -> evaluate."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_dist.core.config import load_config
from sae_dist.core.errors import ConfigError, NumericsError, Preempted, SaeDistError
from sae_dist.core.grid import varied
from sae_dist.core.sharding import world_size_of
from sae_dist.core.validate import validate
from sae_dist.launch.compose import expand, sweep_keys
from sae_dist.launch.freeze import CONFIG, Frozen, freeze
from sae_dist.launch.length import as_begun, with_length
from sae_dist.launch.settle import check_devices, composed, launched, settle


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


def prepare(overrides: list[str], world_size: int | None) -> Frozen:
    """Check everything that can be checked before a process starts, and freeze the run folder.

    Args:
        world_size: ranks that a launcher started; None: this command starts its own.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    cfg = composed(overrides)
    validate(cfg, world_size)
    settled = with_length(settle(as_begun(cfg, CONFIG)), cfg.train_tokens)
    validate(settled.cfg, world_size)
    for each in settled.members:
        # Knows nothing of other groups of consumers: how many ranks there are is no matter of its own.
        validate(each)
    check_devices(settled.cfg, world_size)
    frozen = freeze(settled.cfg, settled.columns, members=settled.members, widths=settled.widths)
    if settled.note:
        print(settled.note, file=sys.stderr)
    if frozen.finished:
        print(f"{frozen.folder} is finished; see summary.json there, or choose another name")
    return frozen


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


def finish(folder: Path) -> None:
    """Export the newest checkpoint, evaluate the export, print the table: of each dictionary of a grid.

    Raises:
        Preempted: SIGTERM or SIGUSR2 asked to stop.
    """
    from sae_dist.analysis.run import evaluate_run
    from sae_dist.analysis.table import format_table
    from sae_dist.train.finish import export_run

    cfg = load_config(folder / CONFIG)
    with stopping_on_request():
        if varied(cfg):
            from sae_dist.launch.grid import finish_grid

            table = finish_grid(cfg, folder)
        else:
            export_run(folder)
            table = format_table(evaluate_run(folder))
    print(f"{os.path.relpath(folder)}\n{table}")


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
