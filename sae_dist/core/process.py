"""Processes, distinguished from later ones of the same number, and machines on which they can be seen."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
STATE, STARTED = 0, 19
"""Places of state and start in /proc/PID/stat, counted after the name (proc(5): fields 3 and 22)."""
ENDED = "ZXx"
"""States of a process that has ended, whether or not it was waited for."""
PS_TIMEOUT_S = 10
HIDDEN = "hidden"
"""The start of a process that is there, and that this user may not look at."""


def own_command() -> list[str]:
    """Return the words that start this command again, in a process that trusts no more than this one.

    `python -m` looks for modules in the working folder first: a file json.py that lies there would run. With
    -P (Python 3.11) it does not; where this process does, by `python -m` or by a path, that is wanted.
    """
    here = any(os.path.abspath(entry) == os.getcwd() for entry in sys.path)
    safe = ["-P"] if sys.version_info >= (3, 11) and not here else []
    return [sys.executable, *safe, "-m", "sae_dist.cli"]


def pause(seconds: float) -> None:
    """Sleep, between two looks of a wait that has an end: `distributed.lookout` knows it by this function."""
    time.sleep(seconds)


@dataclass(frozen=True)
class Machine:
    """A place where the number of a process stands for a single process.

    Attributes:
        host: the name of the host.
        boot: what the kernel draws at each boot; empty where a system does not.
        pids: the namespace of process numbers: each container has its own.
    """

    host: str
    boot: str
    pids: str

    @classmethod
    def here(cls) -> "Machine":
        """Return the place of this process."""
        boot, pids = PROC / "sys/kernel/random/boot_id", PROC / "self/ns/pid"
        return cls(
            socket.gethostname(),
            boot.read_text(encoding="ascii").strip() if boot.is_file() else "",
            os.readlink(pids) if pids.is_symlink() else "",
        )


@dataclass(frozen=True)
class Process:
    """A process by its number and its start; its number alone may be another process's by now."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Return a process of this machine; its start is empty if it has ended already."""
        return cls(pid, _started(pid) or "")

    def lives(self) -> bool:
        """Return whether it still runs on this machine."""
        return self.started != "" and _started(self.pid) in (self.started, HIDDEN)


def _started(pid: int) -> str | None:
    """Return when a process started; None: there is none of this number, or it has ended."""
    if not (PROC / "self/stat").is_file():
        return _asked_of_ps(pid)
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return HIDDEN if _is_anothers(pid) else None
    # The name stands in brackets, and may hold spaces and brackets itself.
    fields = text.rpartition(")")[2].split()
    return None if fields[STATE] in ENDED else fields[STARTED]


def _is_anothers(pid: int) -> bool:
    """Return whether a process exists that /proc, mounted with hidepid, does not show to this user."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return False


def _asked_of_ps(pid: int) -> str | None:
    """Return when a process started, to the second, on a system without /proc, such as macOS."""
    words = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    found = subprocess.run(words, capture_output=True, text=True, timeout=PS_TIMEOUT_S).stdout.split()
    return None if not found or found[0][0] in ENDED else " ".join(found[1:])
