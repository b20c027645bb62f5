"""The door of the `sae-dist` command: `sae_dist.cli:main`, or `python -m sae_dist.cli`."""

import sys
import threading
import traceback
from types import TracebackType

from sae_dist.commands import main as commands
from sae_dist.core.text import print_line


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; see `commands.main`.

    Args:
        arguments: None: those of this process, whose unexpected errors are then printed without secrets.
    """
    if arguments is None:
        sys.excepthook = _leave
        threading.excepthook = lambda found: _leave(found.exc_type, found.exc_value, found.exc_traceback)
    return commands.main(arguments)


def _leave(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    """Print a traceback as Python does, without secrets and control characters."""
    print_line("".join(traceback.format_exception(kind, error, where)).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
