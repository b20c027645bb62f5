"""The owner of a run folder: the one command that may write in it, for as long as that lives.

Whoever finds the owner dead makes the claim with the next number. A dead claim is never replaced, so that of
several successors one wins as well. The owner shows that it lives by what it writes into its claim: no clock
of another host is read, and no time of a file.
"""

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sae_dist.core.claims import Record, content_of, create, newest_of, numbers_of, read, remove
from sae_dist.core.errors import CheckpointError, ConfigError
from sae_dist.core.files import remove_temporaries
from sae_dist.core.private import as_private_as
from sae_dist.core.process import Machine, Process
from sae_dist.core.run_folder import CONFIG, check_links
from sae_dist.core.text import print_line

BEAT_S = 5.0
WATCH_S = 60.0
"""How long an owner on another machine is watched: twelve of its beats, as long as NFS caches."""
WATCH_ENDED_JOB_S = 16.0
"""The same where Slurm says that its job has ended: a process may outlive the allocation of an salloc."""
LEAVE_S = 15.0
"""How long ranks that a killed owner leaves behind are waited for; they notice within moments."""
DIES_WITHIN_S = 1.0
"""How long an owner is given to die that may just have been killed: its memory takes a while to be freed."""
POLL_S = 0.1


class Owner:
    """The claim of this process, with a thread that shows that it lives."""

    def __init__(self, folder: Path, number: int, file: int, record: Record):
        self._folder, self._number, self._file, self._record = folder.absolute(), number, file, record
        self._length = os.fstat(file).st_size
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._show_life, name="owner", daemon=True)
        self._thread.start()

    def moved(self, folder: Path) -> None:
        """Note the folder's new name."""
        self._folder = folder.absolute()

    def add(self, pids: Sequence[int]) -> None:
        """Record processes that write for this one: a successor waits until they have ended, too."""
        self._record = replace(self._record, ranks=tuple(map(Process.of, pids)))
        self._write()

    def release(self) -> None:
        """Give the folder up, unless another owner has taken it."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        os.close(self._file)
        found = numbers_of(self._folder)
        if found and found[-1] == self._number:
            # In order: without this claim, what a dead owner left would count.
            remove(self._folder, found)

    def _show_life(self) -> None:
        while not self._ended.wait(BEAT_S):
            # A disk that fails is reported by those who have data to write.
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        """Write the record in place: into the file that was claimed, whatever counts by now."""
        with self._lock:
            self._record = replace(self._record, beat=self._record.beat + 1)
            content = self._record.to_bytes(self._length)
            self._length = len(content)
            os.pwrite(self._file, content, 0)
            os.fsync(self._file)


@dataclass(frozen=True)
class Standing:
    """The claim under which a rank works, as it found it at its start.

    Attributes:
        number: None: the rank is on another machine than the owner, whose view of the folder may be old; or
            nobody owns it.
    """

    folder: Path
    number: int | None

    @classmethod
    def of(cls, folder: Path) -> "Standing":
        """Return the claim on a run folder as it is now."""
        number = newest_of(folder)
        record = None if number is None else read(folder, number)[1]
        return cls(folder, number if record and record.machine == Machine.here() else None)

    def check(self) -> None:
        """Check that nobody else has taken the folder; an owner that stood still may have lost it.

        Raises:
            CheckpointError: somebody has.
        """
        newest = newest_of(self.folder)
        if self.number is None or newest is None or newest <= self.number:
            return
        _, found = read(self.folder, newest)
        raise CheckpointError(
            f"{self.folder} has been taken over by {found.named() if found else 'another process'}, to which "
            "this run showed no sign of life; it ends, and writes nothing more"
        )


@contextmanager
def owning(folder: Path, doing: str) -> Iterator[None]:
    """Hold a run folder in a `with` block; what is no run folder is left to the block to complain about.

    New files of the block are as private as the folder.

    Args:
        folder: a run's; of a grid, not of one of its dictionaries (see `config.grid.run_of`).

    Raises:
        ConfigError: another process owns it, or it cannot be written.
    """
    if not (folder / CONFIG).is_file():
        yield
        return
    try:
        owner = claim(folder, doing)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        with as_private_as(folder):
            yield
    finally:
        owner.release()


def claim(folder: Path, doing: str) -> Owner:
    """Make this process the owner of a folder, and clear away what dead ones left half written.

    Args:
        doing: what will be done to it, such as `trained`.

    Raises:
        ConfigError: another process owns it, or a file in it is a link to elsewhere.
        OSError: the folder cannot be written.
    """
    check_links(folder)
    record = Record.mine(doing)
    while True:
        dead = refuse_owned(folder)
        number = 1 if dead is None else dead.number + 1
        file = create(folder, number, record)
        if file is None:
            continue
        found = numbers_of(folder)
        # Since the folder was read, others may have come and gone, and begun to count from 1 again.
        as_seen = found == [number] if dead is None else dead.content == content_of(folder, dead.number)
        if as_seen and found[-1] == number:
            # The last dead claim stays: others may be about to succeed it.
            remove(folder, [each for each in found if each < number - 1])
            owner = Owner(folder, number, file, record)
            try:
                remove_temporaries(folder)
            except OSError:
                owner.release()
                raise
            return owner
        os.close(file)
        remove(folder, [number])
        time.sleep(random.random() * POLL_S)


@dataclass(frozen=True)
class DeadClaim:
    """The claim of an owner that lives no more, as it was read."""

    number: int
    content: bytes


def refuse_owned(folder: Path) -> DeadClaim | None:
    """Check that a folder has no living owner, and return a dead one's claim, if there is one.

    Raises:
        ConfigError: it has a living owner.
    """
    while (newest := newest_of(folder)) is not None:
        content, record = read(folder, newest)
        if content is None:
            continue
        if _lives(folder, newest, content, record):
            raise ConfigError(
                f"{folder} is being {_who(record)}; nothing was changed: wait for its end, stop it, or "
                "choose another name="
            )
        if newest == newest_of(folder):
            return DeadClaim(newest, content)
    return None


def _who(record: Record | None) -> str:
    """Return what is done by whom, for a message."""
    if record is None:
        return "written by another process"
    left = [] if record.process.lives() else [str(rank.pid) for rank in record.ranks if rank.lives()]
    ranks = f" (killed; its processes {', '.join(left)} still run)" if left else ""
    return f"{record.doing} by {record.named()}{ranks}"


def _lives(home: Path, number: int, content: bytes, record: Record | None) -> bool:
    """Return whether an owner lives, as far as can be seen from here."""
    if record is not None and record.machine == Machine.here():
        processes = (record.process, *record.ranks)
        began = time.monotonic()
        while any(process.lives() for process in processes):
            if time.monotonic() - began > (DIES_WITHIN_S if record.process.lives() else LEAVE_S):
                return True
            time.sleep(POLL_S)
        return False
    ended = record is not None and record.job is not None and record.job.has_ended()
    seconds = WATCH_ENDED_JOB_S if ended else WATCH_S
    who = record.named() if record else "an unknown process"
    print_line(f"{home} belongs to {who}; looking for a sign of life, for up to {seconds:.0f} s")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(POLL_S)
        now = content_of(home, number)
        if now != content:
            return now is not None
    return False
