"""metrics.jsonl on a disk that fails, and with lines that are damaged."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from sae_dist.core.errors import SaeDistError
from sae_dist.metrics import jsonl
from sae_dist.metrics.jsonl import JsonlSink, read_rows


def row(step):
    return {"step": step, "tokens": 10 * step, "loss/fvu": 1 / step}


@pytest.fixture
def disk(monkeypatch):
    """A disk that takes what one asks it to take: None: all; a number: so many bytes, then it fails."""
    state = SimpleNamespace(room=None, error=errno.ENOSPC)
    real = os.pwrite

    def pwrite(file, data, at):
        if state.room is None:
            return real(file, data, at)
        if state.room == 0:
            raise OSError(state.error, os.strerror(state.error))
        taken, state.room = data[: state.room], state.room - len(data[: state.room])
        return real(file, taken, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return state


@pytest.mark.parametrize("room", [0, 1, 40])
def test_rows_wait_for_a_disk_and_are_written_with_a_later_one(tmp_path, disk, capsys, room):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path, 0)
    sink.write(row(1))
    disk.room = room
    for step in (2, 3, 4):
        sink.write(row(step))
    assert [json.loads(line)["step"] for line in sink.unwritten] == [2, 3, 4]
    assert read_rows(path)[:1] == [row(1)], "what is there can be read"
    disk.room = None
    sink.write(row(5))
    sink.check()
    sink.close()
    assert read_rows(path) == [row(step) for step in range(1, 6)] and sink.unwritten == []
    first, second = capsys.readouterr().err.splitlines()
    assert (
        first.startswith(f"cannot write {path}: No space left on device; training goes on")
        and "make room" in first
    )
    assert second == f"{path} can be written again: the rows that waited are there"


def test_what_waits_has_a_bound_and_what_was_dropped_is_said(tmp_path, disk, monkeypatch, capsys):
    monkeypatch.setattr(jsonl, "WAITING_ROWS", 3)
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    disk.room, disk.error = 0, errno.EIO
    for step in range(1, 6):
        sink.write(row(step))
    assert len(sink.unwritten) == 3
    disk.room = None
    sink.write(row(6))
    said = capsys.readouterr().err
    assert "Input/output error" in said and "make room" not in said and "all but 3 of them" in said
    assert [each["step"] for each in read_rows(tmp_path / "metrics.jsonl")] == [4, 5, 6]


def test_rows_that_a_checkpoint_kept_come_back(tmp_path, disk):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path, 0)
    sink.write(row(1))
    disk.room = 0
    for step in (2, 3):
        sink.write(row(step))
    kept = list(sink.unwritten)
    with pytest.raises(
        SaeDistError, match=r"trained, and 2 rows of .* \(No space left on device\); the last checkpoint"
    ):
        sink.check()
    sink.close()
    disk.room = None
    resumed = JsonlSink(path, 3, kept)
    resumed.write(row(4))
    resumed.close()
    assert read_rows(path) == [row(step) for step in (1, 2, 3, 4)]
    # Nothing twice where the disk came back after the checkpoint, nothing of later steps, and nothing odd.
    JsonlSink(path, 2, [*kept, "", "[]", "no row"]).close()
    assert read_rows(path) == [row(1), row(2)]


DAMAGED = [
    b"\xff\xfe",
    b"{",
    b"[]",
    b"null",
    b"",
    b'{"step": 2}',
    b'{"step": "2", "tokens": 20}',
    b'{"step": true, "tokens": 1}',
    b"[" * 100_000,
    b'{"step": 1, "tokens"{"step": 2, "tokens": 20}',
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_left_out_and_said(tmp_path, capsys, line):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row(1)).encode(), line, json.dumps(row(3)).encode(), b'{"step": 4, "tok']
    path.write_bytes(b"\n".join(lines))
    assert read_rows(path) == [row(1), row(3)]
    assert capsys.readouterr().err == f"{path}: line 2 left out: damaged\n"
    sink = JsonlSink(path, 3)
    sink.write(row(4))
    sink.close()
    capsys.readouterr()
    assert read_rows(path) == [row(1), row(3), row(4)] and capsys.readouterr().err == ""


def test_many_damaged_lines_are_one_line(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text("no\n" + json.dumps(row(1)) + "\nno\n")
    assert read_rows(path) == [row(1)]
    assert capsys.readouterr().err == f"{path}: 2 lines, from 1 on, left out: damaged\n"
