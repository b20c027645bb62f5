"""The steps of `sae-dist train`: compose -> facts -> resolve -> validate -> freeze -> start -> evaluate."""

import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_dist.config.counts import format_count
from sae_dist.config.grid import member_folders, run_of, varied
from sae_dist.config.needs import evaluation_tokens
from sae_dist.config.rules.sharding import world_size_of
from sae_dist.config.run import Resolved, granted_config, load_config, recorded_config
from sae_dist.config.trust import NOTHING, TRAINING, Granted, executing
from sae_dist.config.validate import get, validate
from sae_dist.core.errors import ConfigError, DataError, Preempted, SaeDistError
from sae_dist.core.owner import claim
from sae_dist.core.place import launched
from sae_dist.core.progress import clock, waiting
from sae_dist.core.run_folder import CONFIG, EXPORT, read_summary
from sae_dist.core.text import print_line, quoted, show
from sae_dist.launch.ahead import look_ahead
from sae_dist.launch.compose import compose_config
from sae_dist.launch.folder_kind import RUN, is_finished
from sae_dist.launch.freeze import Frozen, continue_folder, freeze
from sae_dist.launch.identity import caution, check_identity, identity_of
from sae_dist.launch.length import OPEN, as_begun, frozen_of, with_length
from sae_dist.launch.settle import (
    Settled,
    check_devices,
    check_restarts,
    composed,
    for_cluster,
    settle,
)
from sae_dist.launch.start import Role, start


def train_command(overrides: list[str]) -> None:
    """Train one run, from its overrides to its table.

    Raises:
        SaeDistError: see `core.errors`; wrong input leaves nothing behind.
    """
    start(
        lambda world_size: prepare(overrides, world_size),
        TRAIN,
        finish,
        lambda: executing(compose_config(overrides)),
    )


def forecast_command(overrides: list[str]) -> None:
    """Check a run as `train_command` does, and print what it needs; nothing is written or started.

    Raises:
        ConfigError: the input is wrong.
    """
    from sae_dist.launch.forecast import forecast

    settled = checked(overrides, None)
    if settled.note:
        print_line(settled.note)
    show(forecast(settled))


def resume_command(folder: Path, granted: Granted = NOTHING) -> None:
    """Continue a run by its frozen config alone; every start of a Slurm job does this.

    Args:
        granted: what of the config may run code; see `config.trust`.

    Raises:
        SaeDistError: see `core.errors`.
    """
    if launched():
        # slurm/train.sbatch reads this, and names the node wherever it passes on what the rank says.
        print_line(f"on {os.environ.get('SLURMD_NODENAME') or socket.gethostname()}")
    start(lambda world_size: found(folder, world_size, granted), TRAIN, finish, lambda: granted)


def _train_rank(folder: Path, granted: Granted) -> None:
    from sae_dist.train.rank import run_rank

    run_rank(folder, granted)


TRAIN = Role("train", lambda folder: world_size_of(load_config(folder / CONFIG)), _train_rank)


def prepare(
    overrides: list[str], world_size: int | None, *, submitted: bool = False, foretell: bool = False
) -> Frozen:
    """Check everything that can be checked before a process starts, then freeze the run folder.

    Args:
        world_size: ranks that a launcher started; None: this command starts its own.
        submitted: the run will start on a cluster.
        foretell: print what the run needs.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    if world_size is not None:
        check_restarts()
    settled = checked(overrides, world_size, submitted=submitted)
    frozen = freeze(
        settled.cfg,
        settled.columns,
        members=settled.members,
        widths=settled.widths,
        data=identity_of(settled.cfg),
    )
    if settled.note:
        print_line(settled.note)
    if foretell:
        from sae_dist.launch.forecast import forecast

        show(forecast(settled))
    if frozen.finished:
        tell_finished(frozen.folder)
    return dataclasses.replace(frozen, granted=executing(settled.cfg))


def checked(overrides: list[str], world_size: int | None, *, submitted: bool = False) -> Settled:
    """Return the config as it would be frozen; see `prepare`.

    Raises:
        ConfigError: the input is wrong.
    """
    cfg = for_cluster(composed(overrides)) if submitted else composed(overrides)
    begun = frozen_of(cfg, CONFIG) is not None
    validate(cfg, world_size, submitted=submitted, again=True, begun=begun)
    look_ahead(cfg)
    with waiting("loading torch, and reading what the config names"):
        settled = settle(as_begun(cfg, CONFIG), submitted=submitted)
        if cfg.name is None:
            # Its default name may be that of a folder that another topology began.
            named = dataclasses.replace(cfg, name=settled.cfg.name)
            begun, there = frozen_of(named, CONFIG) is not None, as_begun(named, CONFIG)
            if any(get(there, key) not in (None, get(settled.cfg, key)) for key in OPEN):
                settled = settle(there, submitted=submitted)
        settled = with_length(settled, cfg.train_tokens)
    validate(
        settled.cfg, world_size, submitted=submitted, expansion=cfg.sae.expansion, again=True, begun=begun
    )
    for each in settled.members:
        # Knows nothing of other groups of consumers: how many ranks there are is no matter of its own.
        validate(each, submitted=submitted)
    if not submitted:
        check_devices(settled.cfg, world_size)
    return settled


def found(folder: Path, world_size: int | None, granted: Granted = NOTHING) -> Frozen:
    """Return a run folder as it was frozen, to be continued by this process, which owns it now.

    Args:
        granted: what of the config may run code.

    Raises:
        ConfigError: it is none, another process owns it, or this machine or this number of ranks cannot
            continue it; or its config has what would run code and is not granted.
    """
    if world_size is not None:
        check_restarts()
    cfg = granted_config(folder / CONFIG, granted, TRAINING)
    validate(cfg, world_size)
    check_devices(cfg, world_size)
    if is_finished(folder):
        tell_finished(folder)
        return Frozen(folder, finished=True)
    try:
        owner = claim(run_of(folder), RUN.doing)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be continued: {error.strerror or error}") from None
    try:
        # As it is now that nobody else writes.
        cfg = granted_config(folder / CONFIG, granted, TRAINING)
        check_identity(identity_of(cfg), folder)
        parts = [folder, *(each for each in member_folders(cfg, folder) if each != folder)]
        configs = [recorded_config(each / CONFIG) for each in parts]
        for each in configs:
            each.resume = "auto"
        continue_folder(folder, zip(configs, parts, strict=True))
    except BaseException:
        owner.release()
        raise
    return Frozen(folder, owner=owner, granted=granted)


def tell_finished(folder: Path) -> None:
    """Say that nothing is left to do."""
    show(f"{folder} is finished; see summary.json there, or choose another name")


def finish(folder: Path, granted: Granted) -> None:
    """Export the newest checkpoint, evaluate the export, print the table; all dictionaries of a grid.

    Args:
        granted: see `config.trust`.

    Raises:
        Preempted: a signal asked to stop.
        SaeDistError: the export cannot be written, or what it is evaluated on is gone.
    """
    from sae_dist.evaluation.summary import evaluate_run
    from sae_dist.evaluation.table import format_table
    from sae_dist.train.export import export_run, publish_run

    cfg = load_config(folder / CONFIG, granted)
    with stopping_on_request(folder), keeping_what_was_trained(folder):
        caution(cfg, folder)
        if varied(cfg):
            from sae_dist.launch.grid import finish_grid

            table = finish_grid(cfg, folder)
        else:
            export_run(folder, granted=granted)
            print_line(before_evaluation(cfg, folder))
            table = format_table(evaluate_run(folder, granted))
        for each in member_folders(cfg, folder):
            publish_run(each)
    show(f"{os.path.relpath(folder)}\n{table}")


def before_evaluation(cfg: Resolved, folder: Path) -> str:
    """Say what was done, what comes now and for how long by the speed of training, and that it may stop."""
    done = f"trained; export written to {os.path.relpath(folder / EXPORT)}"
    if cfg.eval.tokens == 0:
        return f"{done}; no evaluation (eval.tokens=0)"
    rate = read_summary(folder).get("tokens_per_second")
    about = f", about {clock(evaluation_tokens(cfg) / rate)}" if rate else ""
    rows = format_count(cfg.eval.tokens)
    return f"{done}; evaluating {rows} held-out activations{about}; Ctrl-C is safe, sae-dist resume goes on"


@contextmanager
def keeping_what_was_trained(folder: Path) -> Iterator[None]:
    """Turn an error of the input into one that says what is there: a run that was trained is not refused."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise SaeDistError(
            f"{folder} is trained, and not evaluated: {error}; when that is mended: "
            f"sae-dist resume {quoted(folder)}"
        ) from error


@contextmanager
def stopping_on_request(folder: Path) -> Iterator[None]:
    """Stop at once when a signal asks to: after training nothing is left to save."""

    def stop(_number: int, _frame: object) -> None:
        raise Preempted(
            f"stopped after training as asked; the checkpoint and what was exported are kept. Evaluate it: "
            f"sae-dist resume {quoted(folder)}"
        )

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
