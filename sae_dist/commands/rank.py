"""The command `sae-dist rank ROLE FOLDER --parent-pipe N [key=value]`: `launch.spawn` starts a rank by it."""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sae_dist.commands.failures import DISK, cannot_write
from sae_dist.config.trust import Granted, granted_by
from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.hidden import masked
from sae_dist.core.run_folder import LOGS
from sae_dist.core.text import class_and_line, print_line

ROLES = ("train", "harvest", "atlas", "check", "bench")


def run(arguments: list[str]) -> None:
    """Run one rank. Leave its reason for failing, in one line, where the parent process reads it.

    Raises:
        ConfigError: the arguments are not those that `launch.spawn` gives.
    """
    arguments, granted = granted_by(arguments)
    if len(arguments) != 4 or arguments[0] not in ROLES or not arguments[3].isdecimal():
        raise ConfigError("sae-dist rank is one process of a run, which sae-dist starts itself")
    folder, pipe = Path(arguments[1]), int(arguments[3])
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    try:
        _work_of(arguments[0])(folder, granted)
    except Exception as error:
        _leave(error, folder / LOGS, f"rank_{os.environ['RANK']}")


def _work_of(role: str) -> Callable[[Path, Granted], None]:
    if role == "train":
        from sae_dist.train.rank import run_rank

        return run_rank
    if role == "harvest":
        from sae_dist.train.harvest import harvest_rank

        return harvest_rank
    if role == "atlas":
        from sae_dist.train.atlas.rank import atlas_rank

        return atlas_rank
    if role == "check":
        from sae_dist.launch.check import check_rank

        return lambda folder, _granted: check_rank(folder)
    from sae_dist.bench.stream.ranks import bench_rank

    return lambda folder, _granted: bench_rank(folder)


def _leave(error: Exception, logs: Path, name: str) -> None:
    """Exit, with the reason in logs/NAME.error and the traceback of an unexpected error in logs/NAME.log."""
    if isinstance(error, OSError) and error.errno in DISK:
        error = cannot_write(error)
    reason, exit_code = str(error), getattr(error, "exit_code", 1)
    if not isinstance(error, SaeDistError):
        with suppress(OSError), open(logs / f"{name}.log", "a", encoding="utf-8") as log:
            log.write(masked("".join(traceback.format_exception(error))))
        reason = f"{class_and_line(error)} (traceback in {logs / name}.log)"
    try:
        (logs / f"{name}.error").write_text(masked(reason), encoding="utf-8")
    except OSError:
        # The disk that the reason is about; rank 0 still has the terminal.
        print_line(f"sae-dist: {name}: {reason}")
    sys.stdout.flush()
    sys.stderr.flush()
    # Leave at once: a process group cannot be closed while other ranks are in a collective.
    os._exit(exit_code)


def _end_with_parent(pipe: int) -> None:
    """End this process when the parent is gone: it holds the other end of the pipe, which then ends."""
    while os.read(pipe, 1):
        pass
    os._exit(1)
