"""The line on the terminal for each error."""

import sys

from sae_dist.core.errors import Preempted, SaeDistError, Told
from sae_dist.core.files import WRITING, remedy
from sae_dist.core.hidden import masked

DISK = WRITING
"""Errors of writing, for which there is a line in place of a traceback."""


def say(error: SaeDistError) -> None:
    """Print one line on stderr; nothing if rank 0 says it for all."""
    if isinstance(error, Told):
        return
    # Stopping as asked is no error.
    kind = "" if isinstance(error, Preempted) else "error: "
    print(masked(f"sae-dist: {kind}{' '.join(str(error).split())}"), file=sys.stderr)


def cannot_write(error: OSError) -> SaeDistError:
    """Return the error of a disk that cannot be written, in one line."""
    what = error.filename or "the run folder"
    return SaeDistError(
        f"cannot write {what}: {error.strerror}; {remedy(error)} and continue with resume=auto"
    )
