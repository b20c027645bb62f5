"""The door of the `sae-dist` command: `sae_dist.cli:main`, or `python -m sae_dist.cli`."""

import sys
import threading

from sae_dist.commands import failures
from sae_dist.commands import main as commands


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; see `commands.main`.

    Args:
        arguments: None: those of this process, whose unexpected errors are then printed without secrets.
    """
    if arguments is None:
        sys.excepthook = failures.say_all
        threading.excepthook = failures.say_all_of_thread
    return commands.main(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
