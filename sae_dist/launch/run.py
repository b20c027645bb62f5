"""compose -> facts -> resolve -> validate -> freeze -> spawn here, or join -> export -> evaluate."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_dist.config.grid import member_folders, varied
from sae_dist.config.rules.sharding import world_size_of
from sae_dist.config.run import load_config
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError, NumericsError, Preempted, SaeDistError
from sae_dist.core.place import launched, place
from sae_dist.core.run_folder import CONFIG
from sae_dist.launch.freeze import Frozen, continue_folder, freeze, is_finished
from sae_dist.launch.length import as_begun, with_length
from sae_dist.launch.settle import (
    Settled,
    check_devices,
    check_restarts,
    composed,
    for_cluster,
    settle,
)


def train_command(overrides: list[str]) -> None:
    """`sae-dist train`: one run, from its overrides to its table.

    Raises:
        SaeDistError: see `core.errors`; input found wrong leaves nothing behind.
    """
    _train(lambda world_size: prepare(overrides, world_size))


def resume_command(folder: Path) -> None:
    """`sae-dist resume`: continue a run by its frozen config alone; what every start of a Slurm job does.

    Raises:
        SaeDistError: see `core.errors`.
    """
    if launched():
        # slurm/train.sbatch reads this, and names the node wherever it passes on what the rank says.
        print(f"on {os.environ.get('SLURMD_NODENAME') or socket.gethostname()}", file=sys.stderr, flush=True)
    _train(lambda world_size: found(folder, world_size))


def _train(prepared: Callable[[int | None], Frozen]) -> None:
    if launched():
        _train_joined(prepared)
        return
    frozen = prepared(None)
    if frozen.finished:
        return
    with leaving_nothing(frozen):
        train_here(frozen.folder)
    finish(frozen.folder)


def _train_joined(prepared: Callable[[int | None], Frozen]) -> None:
    """Be one of the ranks that a launcher started.

    Raises:
        SaeDistError: this rank's own; what all ranks raise alike is said by rank 0 alone.
    """
    from sae_dist.launch.join import SaidByRankZero, agree_on_run

    def of_all_ranks() -> Frozen:
        check_restarts()
        return prepared(where.world)

    where = place()
    frozen = agree_on_run(where, of_all_ranks)
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


def prepare(overrides: list[str], world_size: int | None, *, submitted: bool = False) -> Frozen:
    """Check everything that can be checked before a process starts, and freeze the run folder.

    Args:
        world_size: ranks that a launcher started; None: this command starts its own.
        submitted: the run will start on a cluster.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    settled = checked(overrides, world_size, submitted=submitted)
    frozen = freeze(settled.cfg, settled.columns, members=settled.members, widths=settled.widths)
    if settled.note:
        print(settled.note, file=sys.stderr)
    if frozen.finished:
        tell_finished(frozen.folder)
    return frozen


def checked(overrides: list[str], world_size: int | None, *, submitted: bool = False) -> Settled:
    """The config as it would be frozen; see `prepare`.

    Raises:
        ConfigError: the input is wrong.
    """
    cfg = for_cluster(composed(overrides)) if submitted else composed(overrides)
    validate(cfg, world_size, submitted=submitted)
    settled = with_length(settle(as_begun(cfg, CONFIG), submitted=submitted), cfg.train_tokens)
    validate(settled.cfg, world_size, submitted=submitted)
    for each in settled.members:
        # Knows nothing of other groups of consumers: how many ranks there are is no matter of its own.
        validate(each, submitted=submitted)
    if not submitted:
        check_devices(settled.cfg, world_size)
    return settled


def found(folder: Path, world_size: int | None) -> Frozen:
    """A run folder as it was frozen, to be continued.

    Raises:
        ConfigError: it is none, or this machine or this number of ranks cannot continue it.
    """
    cfg = load_config(folder / CONFIG)
    validate(cfg, world_size)
    check_devices(cfg, world_size)
    if is_finished(folder):
        tell_finished(folder)
        return Frozen(folder, finished=True)
    parts = [folder, *(each for each in member_folders(cfg, folder) if each != folder)]
    configs = [load_config(each / CONFIG) for each in parts]
    for each in configs:
        each.resume = "auto"
    continue_folder(folder, zip(configs, parts, strict=True))
    return Frozen(folder)


def tell_finished(folder: Path) -> None:
    """Nothing is left to do."""
    print(f"{folder} is finished; see summary.json there, or choose another name")


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
    from sae_dist.train import rank as run

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
    from sae_dist.evaluation.summary import evaluate_run
    from sae_dist.evaluation.table import format_table
    from sae_dist.train.export import export_run, publish_run

    cfg = load_config(folder / CONFIG)
    with stopping_on_request():
        if varied(cfg):
            from sae_dist.launch.grid import finish_grid

            table = finish_grid(cfg, folder)
        else:
            export_run(folder)
            table = format_table(evaluate_run(folder))
        for each in member_folders(cfg, folder):
            publish_run(each)
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
