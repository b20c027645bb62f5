"""The line on the terminal for each error."""

import threading
import traceback
from types import TracebackType

from sae_dist.core.errors import Preempted, SaeDistError, Told
from sae_dist.core.files import BROKEN, WRITING, remedy
from sae_dist.core.text import print_line

DISK = WRITING
"""Errors of writing, for which there is a line in place of a traceback."""


def say(error: SaeDistError) -> None:
    """Print one line on stderr; nothing if rank 0 says it for all."""
    if isinstance(error, Told):
        return
    # Stopping as asked is no error.
    kind = "" if isinstance(error, Preempted) else "error: "
    print_line(f"sae-dist: {kind}{' '.join(str(error).split())}")


def cannot_write(error: OSError) -> SaeDistError:
    """Return the error of a disk that cannot be written, in one line."""
    what = error.filename or "the run folder"
    verb = "read or write" if error.errno in BROKEN else "write"
    return SaeDistError(
        f"cannot {verb} {what}: {error.strerror}; {remedy(error)} and continue with resume=auto"
    )


def say_all(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    """Print the traceback of an unexpected error as Python does, without secrets and control characters."""
    print_line("".join(traceback.format_exception(kind, error, where)).rstrip())


def say_all_of_thread(found: threading.ExceptHookArgs) -> None:
    """Print the traceback of an unexpected error that ended a thread; see `say_all`."""
    say_all(found.exc_type, found.exc_value, found.exc_traceback)
