"""The files with which processes claim a run folder: OWNER.<n>, of which the highest number counts."""

import errno
import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sae_dist.core.files import TEMPORARY
from sae_dist.core.parsing import open_file, parse_json
from sae_dist.core.process import Machine, Process
from sae_dist.core.run_folder import OWNER
from sae_dist.core.slurm_queue import Job

READ_AGAIN_S = 0.05
READ_FOR_S = 1.0
LONGEST_BYTES = 1 << 20
WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@dataclass(frozen=True)
class Record:
    """The content of a claim.

    Attributes:
        token: drawn at random; no two claims have the same.
        doing: what is done to the folder, such as `trained`.
        since: local time, with its zone; for people alone.
        ranks: processes on the same machine that write for the owner.
        beat: grows for as long as the owner lives.
    """

    token: str
    doing: str
    since: str
    machine: Machine
    process: Process
    job: Job | None
    ranks: tuple[Process, ...] = ()
    beat: int = 0

    @classmethod
    def mine(cls, doing: str) -> "Record":
        """Return a record of this process."""
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        here, process = Machine.here(), Process.of(os.getpid())
        return cls(secrets.token_hex(8), doing, since, here, process, Job.here())

    def to_bytes(self, length: int = 0) -> bytes:
        """Return the record as a line of JSON, of at least this length."""
        return json.dumps(asdict(self)).encode().ljust(length - 1) + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> "Record | None":
        """Return the record in a claim; None: it is not all there, or is none."""
        try:
            found: dict[str, Any] = parse_json(content)
            job = found["job"] and Job(**found["job"])
            ranks = tuple(Process(**each) for each in found["ranks"])
            machine, process = Machine(**found["machine"]), Process(**found["process"])
            return cls(**found | {"machine": machine, "process": process, "job": job, "ranks": ranks})
        except (ValueError, KeyError, TypeError):
            return None

    def named(self) -> str:
        """Return who it is, for a message."""
        job = f", Slurm job {self.job.number}" if self.job else ""
        return f"pid {self.process.pid} on host {self.machine.host}{job}, since {self.since}"


def create(home: Path, number: int, record: Record) -> int | None:
    """Make a claim, and return its open file; None: there is one of this number already.

    A hard link succeeds for one of those that try at the same time, on NFS too.

    Raises:
        OSError: the folder cannot be written.
    """
    path, draft = path_of(home, number), home / f"{OWNER}-{record.token}{TEMPORARY}"
    file = os.open(draft, EXCLUSIVE, 0o644)
    try:
        os.write(file, record.to_bytes())
        os.fsync(file)
        os.link(draft, path)
        return file
    except OSError as error:
        # NFS may lose the answer and try again: then the link is there all the same.
        if os.fstat(file).st_nlink == 2:
            return file
        os.close(file)
        if error.errno in (errno.EEXIST, errno.ENOENT):
            # The latter: somebody was faster, and has cleared away what is not complete.
            return None
        if error.errno not in WITHOUT_LINKS:
            raise
    finally:
        draft.unlink(missing_ok=True)
    try:
        file = os.open(path, EXCLUSIVE, 0o644)
    except FileExistsError:
        return None
    os.write(file, record.to_bytes())
    return file


def remove(home: Path, numbers: list[int]) -> None:
    """Remove claims, in this order."""
    for number in numbers:
        path_of(home, number).unlink(missing_ok=True)


def numbers_of(home: Path) -> list[int]:
    """List the numbers of the claims on a folder, in order."""
    names = (each.name.removeprefix(f"{OWNER}.") for each in home.glob(f"{OWNER}.*"))
    return sorted(int(name) for name in names if name.isdecimal())


def newest_of(home: Path) -> int | None:
    """Return the number of the claim that counts; None: there is none."""
    return max(numbers_of(home), default=None)


def path_of(home: Path, number: int) -> Path:
    """Return the file of a claim."""
    return home / f"{OWNER}.{number}"


def content_of(home: Path, number: int) -> bytes | None:
    """Return what stands in a claim, as far as it may be one; None: it is gone."""
    with suppress(FileNotFoundError), open_file(path_of(home, number)) as file:
        return file.read(LONGEST_BYTES)
    return None


def read(home: Path, number: int) -> tuple[bytes | None, Record | None]:
    """Return the content of a claim (None: it is gone), and the record in it (None: that is missing).

    What is unreadable is read again, for longer than a write takes.
    """
    until = time.monotonic() + READ_FOR_S
    while (content := content_of(home, number)) is not None:
        found = Record.from_bytes(content)
        if found is not None or time.monotonic() > until:
            return content, found
        time.sleep(READ_AGAIN_S)
    return None, None
