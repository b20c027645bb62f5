"""The file metrics.jsonl: one JSON object per line."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae_dist.core.errors import SaeDistError
from sae_dist.core.files import in_words, remedy, write_text
from sae_dist.core.parsing import check_numbers, open_file
from sae_dist.core.text import print_line

WAITING_ROWS = 10_000
"""How many rows wait at most while they cannot be written: some 10 MB, in memory and in each checkpoint."""


class JsonlSink:
    """The sink that writes each row at once; NaN and inf become null.

    A disk that is full or broken costs no training: rows that cannot be written wait, and are written with a
    later one. Each checkpoint keeps those that wait (`unwritten`), for a run that goes on from it.

    Opening drops the lines of steps after `resume_step`, and lines that are damaged, so that each step is in
    the file once.

    Args:
        unwritten: lines of steps up to `resume_step` that may be missing in the file.
    """

    def __init__(self, path: Path, resume_step: int, unwritten: Iterable[str] = ()):
        rows = [row for line in unwritten if (row := _row(line.encode())) is not None]
        rows += read_rows(path) if path.exists() else []
        kept = {row["step"]: row for row in rows if row["step"] <= resume_step}
        text = "".join(_line(kept[step]) for step in sorted(kept))
        write_text(path, text, synced=True)
        self._path, self._file, self._end = path, os.open(path, os.O_WRONLY), len(text.encode())
        self.unwritten: list[str] = []
        self._dropped = 0
        self._error: OSError | None = None

    def write(self, row: dict[str, Any]) -> None:
        self.unwritten.append(_line(row))
        self._dropped += max(len(self.unwritten) - WAITING_ROWS, 0)
        del self.unwritten[:-WAITING_ROWS]
        self._flush()

    def _flush(self) -> None:
        """Write what waits, if that can be done; say once when it cannot, and when it can again."""
        begun = "".join(self.unwritten).encode()
        try:
            at, rest = self._end, begun
            while rest:
                # At a fixed place: what a write that failed left behind is written over.
                count = os.pwrite(self._file, rest, at)
                at, rest = at + count, rest[count:]
        except OSError as error:
            if self._error is None:
                print_line(
                    f"cannot write {self._path}: {in_words(error)}; training goes on, and the rows wait for "
                    f"the disk: {remedy(error) or 'look at it'}"
                )
            self._error = error
            return
        if self._error is not None:
            lost = f", all but {self._dropped} of them" if self._dropped else ""
            print_line(f"{self._path} can be written again: the rows that waited are there{lost}")
        self._error, self._dropped = None, 0
        self._end += len(begun)
        self.unwritten.clear()

    def check(self) -> None:
        """Check that no row waits any more.

        Raises:
            SaeDistError: some do; the checkpoint holds them.
        """
        self._flush()
        if self._error is not None:
            raise SaeDistError(
                f"trained, and {len(self.unwritten)} rows of {self._path} could not be written "
                f"({in_words(self._error)}); the last checkpoint holds them: "
                f"{remedy(self._error) or 'look at the disk'} and continue with resume=auto"
            )

    def alert(self, title: str, text: str) -> None:
        """Ignore the alert: the file holds numbers only."""

    def close(self) -> None:
        os.close(self._file)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl. Lines that are none are left out, and counted on stderr.

    A last line without its end is one that is being written, or was when the process died.
    """
    rows, damaged = [], []
    with open_file(path) as file:
        lines = file.read().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None:
            damaged.append(number)
        else:
            rows.append(row)
    if damaged:
        which = f"line {damaged[0]}" if len(damaged) == 1 else f"{len(damaged)} lines, from {damaged[0]} on,"
        print_line(f"{path}: {which} left out: damaged")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        check_numbers(row)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and type(row.get("step")) is int and type(row.get("tokens")) is int
    return row if known else None


def _line(row: dict[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"
