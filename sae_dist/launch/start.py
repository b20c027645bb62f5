"""The way from a prepared run folder to a finished one: ranks started here, or one rank of a launcher."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sae_dist.config.trust import Granted
from sae_dist.core.errors import (
    CheckpointError,
    ConfigError,
    NumericsError,
    Preempted,
    SaeDistError,
    TransportError,
)
from sae_dist.core.place import launched, place
from sae_dist.core.private import as_private_as
from sae_dist.launch.freeze import Frozen

FEWEST_AT_MOST, PER_CORE = 64, 4
OF_RANK_ZERO = "rank 0 failed: "
"""The beginning of what other ranks know of a failure that rank 0 prints itself; see `Control.tell`."""


@dataclass(frozen=True)
class Role:
    """The work of each rank of a command.

    Attributes:
        name: `sae-dist rank NAME FOLDER` is one of them.
        count: how many of them a folder is made for.
        work: what one does in the folder, with what the command grants.
    """

    name: str
    count: Callable[[Path], int]
    work: Callable[[Path, Granted], None]


Finish = Callable[[Path, Granted], None]


def start(
    prepare: Callable[[int | None], Frozen], role: Role, finish: Finish, granted: Callable[[], Granted]
) -> None:
    """Prepare a folder, work in it on every rank, then finish it on one.

    Args:
        prepare: given the number of ranks that a launcher started, None without one; makes the folder or
            finds it.
        finish: called once, on rank 0 or where the ranks were started, after all of them have worked.
        granted: returns what this process's own command line grants, on ranks that prepare nothing.

    Raises:
        SaeDistError: see `core.errors`; wrong input leaves no new folder behind.
    """
    if launched():
        _join(prepare, role, finish, granted)
        return
    frozen = prepare(None)
    if frozen.finished:
        return
    with released_at_the_end(frozen):
        ranks = role.count(frozen.folder)
        with leaving_nothing(frozen):
            check_number(ranks)
            if ranks == 1:
                with own_signals():
                    role.work(frozen.folder, frozen.granted)
            else:
                from sae_dist.launch.spawn import spawn

                spawn(frozen.folder, ranks, role.name, frozen.owner, frozen.granted)
        finish(frozen.folder, frozen.granted)


def check_number(ranks: int) -> None:
    """Check that one machine is not asked to start more processes than it can bear; a file may say how many.

    Raises:
        ConfigError: it is.
    """
    most = max(FEWEST_AT_MOST, PER_CORE * (os.cpu_count() or 1))
    if ranks > most:
        raise ConfigError(
            f"topology: {ranks} processes on one machine, at most {most} are started; start them by torchrun "
            "or Slurm on several"
        )


def _join(
    prepare: Callable[[int | None], Frozen], role: Role, finish: Finish, granted: Callable[[], Granted]
) -> None:
    """Join the ranks that a launcher started.

    Raises:
        SaeDistError: this rank's own error; one that all ranks raise is printed by rank 0 alone.
    """
    from sae_dist.launch.join import SaidByRankZero, agree_on_run

    where = place()
    frozen = agree_on_run(where, lambda: prepare(where.world))
    if frozen.finished:
        return
    if where.rank:
        # Of what rank 0 says over the network, nothing can run code.
        frozen = replace(frozen, granted=granted())
    with released_at_the_end(frozen):
        try:
            with leaving_nothing(frozen), own_signals():
                role.work(frozen.folder, frozen.granted)
        except (CheckpointError, NumericsError, Preempted, TransportError) as error:
            if where.rank and (not isinstance(error, TransportError) or str(error).startswith(OF_RANK_ZERO)):
                raise SaidByRankZero(error.exit_code) from None
            raise
        if where.rank == 0:
            finish(frozen.folder, frozen.granted)


@contextmanager
def released_at_the_end(frozen: Frozen) -> Iterator[None]:
    """Release the folder at the end of a `with` block, however it ends; new files are as private as it."""
    try:
        with as_private_as(frozen.folder):
            yield
    finally:
        frozen.release()


@contextmanager
def leaving_nothing(frozen: Frozen) -> Iterator[None]:
    """Discard the new folder if a rank finds the input wrong."""
    try:
        yield
    except SaeDistError as error:
        if error.exit_code == ConfigError.exit_code:
            frozen.discard()
        raise


@contextmanager
def own_signals() -> Iterator[None]:
    """Restore the handlers of SIGTERM, SIGINT and SIGUSR2 on exit."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
