"""The way from a prepared run folder to a finished one: ranks started here, or one rank of a launcher."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sae_dist.core.errors import (
    CheckpointError,
    ConfigError,
    NumericsError,
    Preempted,
    SaeDistError,
    TransportError,
)
from sae_dist.core.place import launched, place
from sae_dist.launch.freeze import Frozen

OF_RANK_ZERO = "rank 0 failed: "
"""The beginning of what other ranks know of a failure that rank 0 prints itself; see `Control.tell`."""


@dataclass(frozen=True)
class Role:
    """The work of each rank of a command.

    Attributes:
        name: `sae-dist rank NAME FOLDER` is one of them.
        count: how many of them a folder is made for.
        work: what one does in the folder.
    """

    name: str
    count: Callable[[Path], int]
    work: Callable[[Path], None]


def start(prepare: Callable[[int | None], Frozen], role: Role, finish: Callable[[Path], None]) -> None:
    """Prepare a folder, work in it on every rank, then finish it on one.

    Args:
        prepare: given the number of ranks that a launcher started, None without one; makes the folder or
            finds it.
        finish: called once, on rank 0 or where the ranks were started, after all of them have worked.

    Raises:
        SaeDistError: see `core.errors`; wrong input leaves no new folder behind.
    """
    if launched():
        _join(prepare, role, finish)
        return
    frozen = prepare(None)
    if frozen.finished:
        return
    with released_at_the_end(frozen):
        ranks = role.count(frozen.folder)
        with leaving_nothing(frozen):
            if ranks == 1:
                with own_signals():
                    role.work(frozen.folder)
            else:
                from sae_dist.launch.spawn import spawn

                spawn(frozen.folder, ranks, role.name, frozen.owner)
        finish(frozen.folder)


def _join(prepare: Callable[[int | None], Frozen], role: Role, finish: Callable[[Path], None]) -> None:
    """Join the ranks that a launcher started.

    Raises:
        SaeDistError: this rank's own error; one that all ranks raise is printed by rank 0 alone.
    """
    from sae_dist.launch.join import SaidByRankZero, agree_on_run

    where = place()
    frozen = agree_on_run(where, lambda: prepare(where.world))
    if frozen.finished:
        return
    with released_at_the_end(frozen):
        try:
            with leaving_nothing(frozen), own_signals():
                role.work(frozen.folder)
        except (CheckpointError, NumericsError, Preempted, TransportError) as error:
            if where.rank and (not isinstance(error, TransportError) or str(error).startswith(OF_RANK_ZERO)):
                raise SaidByRankZero(error.exit_code) from None
            raise
        if where.rank == 0:
            finish(frozen.folder)


@contextmanager
def released_at_the_end(frozen: Frozen) -> Iterator[None]:
    """Release the folder at the end of a `with` block, however it ends."""
    try:
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
