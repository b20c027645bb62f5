"""Ranks of a run that are started and watched on this machine, without a launcher."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from sae_dist.config.trust import NOTHING, Granted, words
from sae_dist.core.errors import Preempted, SaeDistError
from sae_dist.core.owner import Owner
from sae_dist.core.process import own_command
from sae_dist.core.run_folder import CHECKPOINTS, LATEST, LOGS
from sae_dist.core.text import quoted

GRACE_S = 10.0
POLL_S = 0.05
PARENT_PIPE = "--parent-pipe"
FOLLOWS = r"rank \d+ failed: |a rank that rank \d+ exchanges data with is gone"
"""The beginning of reasons that follow from the failure of another rank."""


class RankFailed(SaeDistError):
    """The failure of a rank, with its exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def spawn(
    folder: Path, world: int, role: str, owner: Owner | None = None, granted: Granted = NOTHING
) -> None:
    """Run `sae-dist rank ROLE FOLDER` in `world` processes, to their end.

    Ranks find each other through torchrun's variables; this process hosts their store, on a port that the
    system chose. Signals are passed on to the ranks. Ranks notice the end of this process through a pipe.

    Args:
        role: see `commands.rank`.
        owner: this process's claim on the folder; a successor waits for the ranks, too.
        granted: what the command grants the ranks; see `config.trust`.

    Raises:
        RankFailed: the first rank that failed, with its reason; the others were stopped.
        Preempted: the ranks stopped as asked; or a signal that was passed on ended one before it could save.
    """
    from sae_dist.distributed.network import local_store

    store = local_store()
    logs = folder / LOGS
    logs.mkdir(exist_ok=True)
    for left_over in logs.glob("rank_*.error"):
        left_over.unlink()
    ours, theirs = os.pipe()
    ranks = [
        _start(
            [role, str(folder), PARENT_PIPE, str(ours), *words(granted)], logs, rank, world, store.port, ours
        )
        for rank in range(world)
    ]
    os.close(ours)
    try:
        if owner is not None:
            owner.add([rank.pid for rank in ranks])
        with _passing_on_signals(ranks) as passed_on:
            _watch(ranks, logs, passed_on, _how_to_go_on(role, folder))
    finally:
        os.close(theirs)


def _start(
    arguments: list[str], logs: Path, rank: int, world: int, port: int, pipe: int
) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // world, 1)))
    command = [*own_command(), "rank", *arguments]
    with open(logs / f"rank_{rank}.log", "ab") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else log,
            stderr=None if rank == 0 else log,
            pass_fds=(pipe,),
            start_new_session=True,
        )


def _watch(ranks: list[subprocess.Popen[bytes]], logs: Path, passed_on: set[int], go_on: str) -> None:
    """Wait for all ranks; after a failure stop the others and raise it."""
    while not any(rank.poll() for rank in ranks):
        if all(rank.poll() == 0 for rank in ranks):
            return
        time.sleep(POLL_S)
    first = _first_to_fail(ranks, logs)
    until = time.monotonic() + GRACE_S
    with contextlib.suppress(subprocess.TimeoutExpired):
        # Ranks that leave together, on an agreed stop, are let go; after any other failure all have to.
        if ranks[first].wait(GRACE_S) != Preempted.exit_code:
            _signal(ranks, signal.SIGTERM)
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < until:
        time.sleep(POLL_S)
    _signal(ranks, signal.SIGKILL)
    for rank in ranks:
        rank.wait()
    if -ranks[first].returncode in passed_on:
        raise Preempted(f"stopped as asked, before this step was saved. Go on: {go_on}")
    raise _failure(first, ranks[first].returncode, logs, go_on)


def _first_to_fail(ranks: list[subprocess.Popen[bytes]], logs: Path) -> int:
    """Return the rank that failed first: one that was killed, else the one that wrote its reason first.

    A rank informs the others before it writes its reason; one that only repeats another's reason is later,
    and so is one that only misses another. A rank that aborted may have been ended by torch's watchdog,
    because another failed: a reason of its own, written by any rank, comes before that.
    """

    def order(rank: int) -> tuple[int, float]:
        code, reason = ranks[rank].poll(), _reason(logs, rank)
        if code is not None and code < 0 and code != -signal.SIGABRT:
            return 0, 0.0
        if reason.exists():
            told = re.match(FOLLOWS, reason.read_text(encoding="utf-8"))
            return (3 if told else 1), reason.stat().st_mtime_ns
        if code == -signal.SIGABRT:
            return 2, 0.0
        return (4, 0.0) if code else (5, 0.0)

    return min(range(len(ranks)), key=order)


def _how_to_go_on(role: str, folder: Path) -> str:
    return f"sae-dist resume {quoted(folder)}" if role == "train" else "the same command with resume=auto"


def _failure(rank: int, code: int, logs: Path, go_on: str) -> SaeDistError:
    if code < 0:
        name, latest = signal.Signals(-code).name, logs.parent / CHECKPOINTS / LATEST
        last = latest.read_text(encoding="utf-8").strip() if latest.is_file() else "none"
        where = f"host {socket.gethostname()}, last checkpoint {last}"
        return RankFailed(f"rank {rank} was killed by {name} ({where}); go on: {go_on}", 1)
    reason = _reason(logs, rank)
    text = reason.read_text(encoding="utf-8").strip() if reason.exists() else ""
    if code == Preempted.exit_code and text:
        return Preempted(text)
    return RankFailed(f"rank {rank}: {text or f'it exited with code {code}'}", code or 1)


def _reason(logs: Path, rank: int) -> Path:
    return logs / f"rank_{rank}.error"


def _signal(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                rank.send_signal(number)


@contextlib.contextmanager
def _passing_on_signals(ranks: list[subprocess.Popen[bytes]]) -> Iterator[set[int]]:
    """Pass signals on to the ranks, and yield the set of those that came before any rank failed."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    passed_on: set[int] = set()

    def pass_on(number: int, _frame: object) -> None:
        # After a failure the signal is no reason for what happens to the ranks.
        if not any(rank.poll() for rank in ranks):
            passed_on.add(number)
        _signal(ranks, number)

    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield passed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
