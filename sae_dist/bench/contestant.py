"""The contestants of a benchmark: each runs in a process of its own, a peer in an environment of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_dist.bench.environments import is_mine
from sae_dist.core.errors import ConfigError, SaeDistError

PEERS = Path(__file__).parent / "peers"
TRAINERS = ("saelens", "sparsify", "dictionary_learning")
JOB, LOG = "job.json", "log.txt"
"""Files of a contestant's process: what it has to do, and what it printed."""


@dataclass(frozen=True)
class Contestant:
    """A trainer, ours or a peer's, and how its process is started.

    Attributes:
        label: its name in tables.
        peer: the peer whose environment it needs; None: it runs in ours.
        target: a script in `peers/`, or one of our own modules.
        variant: passed on to the target.
    """

    name: str
    label: str
    peer: str | None
    target: str
    variant: str = ""

    def command(self, folder: Path, peer_python: dict[str, str]) -> list[str]:
        """Return the words that start its process; the path of its job is to follow.

        Raises:
            TrialFailed: the peer has no environment.
        """
        if self.peer is None:
            return [sys.executable, "-m", self.target]
        return [interpreter(self.peer, folder, peer_python), str(PEERS / self.target)]

    def environment(self) -> dict[str, str]:
        """Return its environment variables.

        Ours imports this very package, wherever this process found it; a peer must not see it.
        """
        found = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if self.peer is None:
            found["PYTHONPATH"] = str(Path(__file__).parents[2])
        return found | {"WANDB_MODE": "disabled", "TQDM_MININTERVAL": "30"}


class TrialFailed(SaeDistError):
    """A contestant is missing or failed; the message is the last line that it printed."""


def interpreter(peer: str, folder: Path, given: dict[str, str]) -> str:
    """Return a peer's Python: the given one, or that of its environment in the benchmark's folder.

    Raises:
        TrialFailed: it does not exist, or is none that this user made or gave.
    """
    python = Path(given[peer]) if peer in given else peer_environment(folder, peer)
    if not python.is_file():
        raise TrialFailed(
            f"{python} does not exist; make it with sae-dist bench peers --folder {folder}, or give "
            f"--peer-python {peer}=/path/to/python"
        )
    if peer not in given and not is_mine(python.parents[1]):
        raise TrialFailed(
            f"{python} was not made by you, and would run as you; make it with sae-dist bench peers "
            f"--folder {folder}, or, if you trust it, give --peer-python {peer}={python}"
        )
    return str(python)


def peer_environment(folder: Path, peer: str) -> Path:
    """Return the Python of the environment that `sae-dist bench peers` makes."""
    return folder.absolute() / "peers" / peer / "bin" / "python"


def check_peer_python(given: dict[str, str]) -> None:
    """Check names and interpreters of --peer-python.

    Raises:
        ConfigError: an unknown peer, or a file that does not exist.
    """
    for peer, python in given.items():
        if peer not in TRAINERS:
            raise ConfigError(f"--peer-python {peer}={python}: the peers are {', '.join(sorted(TRAINERS))}")
        if not Path(python).is_file():
            raise ConfigError(f"--peer-python {peer}={python} does not exist; give a Python interpreter")


@contextlib.contextmanager
def ended_with_us(child: subprocess.Popen) -> Iterator[None]:
    """End a child with the body: kill it when a signal stops us, or close its stdin.

    A child that reads the end of its stdin ends by itself, even where this process was killed.
    """

    def stop(number: int, _frame: object) -> None:
        child.kill()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdin:
            child.stdin.close()


def last_line(log: Path) -> str:
    """Return the last line that a process printed, progress bars left out; "" if it printed nothing."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "it/s]" not in line]
    return lines[-1][:300] if lines else ""
