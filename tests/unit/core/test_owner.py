"""One living owner of a folder: named to others, followed when dead, one of many that come at once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from sae_dist.core import claims, owner
from sae_dist.core.claims import Record, content_of, create, numbers_of, path_of
from sae_dist.core.errors import CheckpointError, ConfigError
from sae_dist.core.owner import Standing, claim, owning, refuse_owned
from sae_dist.core.process import Machine, Process
from sae_dist.core.slurm_queue import Job

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    monkeypatch.setattr(owner, "WATCH_S", 0.5)
    monkeypatch.setattr(owner, "WATCH_ENDED_JOB_S", 0.3)
    monkeypatch.setattr(owner, "LEAVE_S", 0.5)
    monkeypatch.setattr(owner, "DIES_WITHIN_S", 0.0)
    monkeypatch.setattr(owner, "POLL_S", 0.02)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def dead_process() -> Process:
    """One that ended, with the start that it had."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = Process.of(child.pid)
    assert found.lives()
    child.kill()
    child.wait()
    return found


def leave(folder, **changes) -> Record:
    """A claim of another process in a folder; `changes` are those of its record."""
    record = replace(Record.mine("trained"), **changes)
    file = create(folder, 1 + max(numbers_of(folder), default=0), record)
    assert file is not None
    os.close(file)
    return record


def test_a_second_is_refused_by_name_and_leaves_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    first = claim(tmp_path, "trained")
    before = sorted(path.name for path in tmp_path.iterdir())
    for act in (lambda: claim(tmp_path, "evaluated"), lambda: refuse_owned(tmp_path)):
        with pytest.raises(ConfigError) as refusal:
            act()
        said = str(refusal.value)
        assert f"{tmp_path} is being trained by pid {os.getpid()} on host {Machine.here().host}" in said
        assert "since 20" in said and "choose another name=" in said and "\n" not in said
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    first.release()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    claim(tmp_path, "evaluated").release()


def test_a_dead_owner_is_followed_at_once(tmp_path):
    leave(tmp_path, process=dead_process())
    began = time.monotonic()
    follower = claim(tmp_path, "trained")
    assert time.monotonic() - began < 0.3 and numbers_of(tmp_path) == [1, 2]
    with pytest.raises(ConfigError, match=f"by pid {os.getpid()} "):
        refuse_owned(tmp_path)
    follower.release()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_by_now_is_not_the_owner(tmp_path):
    leave(tmp_path, process=Process(os.getpid(), "1"))
    claim(tmp_path, "trained").release()


def test_an_owner_that_is_dying_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "DIES_WITHIN_S", 5.0)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    leave(tmp_path, process=Process.of(child.pid))
    claim(tmp_path, "trained").release()
    child.wait()


def test_a_process_that_was_not_waited_for_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = Process.of(child.pid)
    child.kill()
    until = time.monotonic() + 10
    while found.lives():
        assert time.monotonic() < until
    child.wait()


def test_an_owner_that_stands_still_lives(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        leave(tmp_path, process=Process.of(child.pid))
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(ConfigError, match=f"by pid {child.pid} "):
            claim(tmp_path, "trained")
    finally:
        child.kill()
        child.wait()


def test_ranks_that_a_killed_owner_leaves_behind_are_waited_for(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    rank = Process.of(child.pid)
    leave(tmp_path, process=dead_process(), ranks=(rank,))
    with pytest.raises(ConfigError, match=f"killed; its processes {child.pid} still run"):
        claim(tmp_path, "trained")
    child.kill()
    child.wait()
    claim(tmp_path, "trained").release()


ELSEWHERE = [
    {"host": "another"},
    {"boot": "0000"},
    {"pids": "pid:[1]"},
]


@pytest.mark.parametrize("where", ELSEWHERE, ids=lambda each: next(iter(each)))
def test_an_owner_on_another_machine_lives_for_as_long_as_it_writes(tmp_path, where, capsys):
    """There its number means nothing, whether a process here has it or not."""
    record = replace(Record.mine("trained"), machine=replace(Machine.here(), **where))
    file = create(tmp_path, 1, record)
    assert file is not None
    living = owner.Owner(tmp_path, 1, file, record)
    with pytest.raises(ConfigError, match=f"on host {record.machine.host}"):
        claim(tmp_path, "trained")
    living._ended.set()
    living._thread.join()
    began = time.monotonic()
    follower = claim(tmp_path, "trained")
    assert time.monotonic() - began >= 0.5
    assert "looking for a sign of life" in capsys.readouterr().err
    follower.release()
    os.close(file)


def test_no_clock_is_read(tmp_path):
    """A claim whose times are in the future and in the past, of an owner elsewhere that has ended."""
    for stamp in (0, 4e9):
        leave(tmp_path, machine=replace(Machine.here(), host="another"), since="1970-01-01")
        os.utime(path_of(tmp_path, numbers_of(tmp_path)[-1]), (stamp, stamp))
        claim(tmp_path, "trained").release()


def test_a_job_that_slurm_says_has_ended_is_watched_for_less_long(tmp_path, monkeypatch):
    job = Job("cluster", "77", "0", 0)
    leave(tmp_path, machine=replace(Machine.here(), host="another"), job=job)
    monkeypatch.setattr(Job, "has_ended", lambda self: self == job)
    began = time.monotonic()
    claim(tmp_path, "trained").release()
    assert time.monotonic() - began < 0.5


def test_what_is_no_record_is_watched_and_then_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "READ_FOR_S", 0.1)
    path_of(tmp_path, 1).write_bytes(b"")
    began = time.monotonic()
    claim(tmp_path, "trained").release()
    assert time.monotonic() - began >= 0.5 and list(tmp_path.iterdir()) == []


def _try(folder, go, stay, results) -> None:
    go.wait()
    try:
        mine = claim(folder, "trained")
    except ConfigError as error:
        results.put(str(error))
        return
    results.put(os.getpid())
    stay.wait(60)
    mine.release()


@pytest.mark.parametrize("before", ["free", "dead", "twice dead"])
def test_of_many_at_once_exactly_one_wins(tmp_path, before):
    for _ in range(("free", "dead", "twice dead").index(before)):
        leave(tmp_path, process=dead_process())
    go, stay, results = FORK.Event(), FORK.Event(), FORK.Queue()
    tries = [FORK.Process(target=_try, args=(tmp_path, go, stay, results)) for _ in range(12)]
    for each in tries:
        each.start()
    go.set()
    found = [results.get(timeout=60) for _ in tries]
    stay.set()
    for each in tries:
        each.join()
    (winner,) = [each for each in found if isinstance(each, int)]
    assert all(f"by pid {winner} " in each for each in found if each != winner)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("before", "meanwhile"), [("dead", 1), ("dead", 3), ("free", 2)])
def test_one_that_comes_while_another_decides_is_found(tmp_path, monkeypatch, before, meanwhile):
    """Between the look at a dead claim and the claim after it, others came and went, and one stays."""
    if before == "dead":
        leave(tmp_path, process=dead_process())
        leave(tmp_path, process=dead_process())
    make = owner.create

    def later(folder, number, record):
        monkeypatch.setattr(owner, "create", make)
        for each in numbers_of(folder):
            path_of(folder, each).unlink()
        file = make(folder, meanwhile, Record.mine("evaluated"))
        assert file is not None
        os.close(file)
        return make(folder, number, record)

    monkeypatch.setattr(owner, "create", later)
    with pytest.raises(ConfigError, match="is being evaluated by"):
        claim(tmp_path, "trained")
    assert numbers_of(tmp_path) == [meanwhile]


def _come_and_go(folder, times, log) -> None:
    for _ in range(times):
        try:
            mine = claim(folder, "trained")
        except ConfigError:
            continue
        # Alone: nobody else is between these two lines.
        with open(log, "a") as file:
            file.write(f"+{os.getpid()}\n")
        time.sleep(0.001)
        with open(log, "a") as file:
            file.write(f"-{os.getpid()}\n")
        mine.release()


def test_owners_that_come_and_go_are_never_two(tmp_path):
    """Numbers begin again from 1 while others still look at higher ones."""
    folder = tmp_path / "run"
    folder.mkdir()
    leave(folder, process=dead_process())
    log = tmp_path / "log"
    tries = [FORK.Process(target=_come_and_go, args=(folder, 60, log)) for _ in range(6)]
    for each in tries:
        each.start()
    for each in tries:
        each.join()
    lines = log.read_text().splitlines()
    assert len(lines) > 20
    for enter, end in zip(lines[::2], lines[1::2], strict=True):
        assert enter[0] == "+" and end == f"-{enter[1:]}"


def test_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def none(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    first = claim(tmp_path, "trained")
    with pytest.raises(ConfigError, match="is being trained"):
        claim(tmp_path, "trained")
    first.release()
    assert list(tmp_path.iterdir()) == []


def test_a_link_whose_answer_was_lost_counts(tmp_path, monkeypatch):
    link = os.link

    def lost(source, target):
        link(source, target)
        raise OSError(110, "Connection timed out")

    monkeypatch.setattr(os, "link", lost)
    first = claim(tmp_path, "trained")
    assert numbers_of(tmp_path) == [1]
    first.release()


def test_a_beat_is_written_in_place_and_survives_a_longer_and_a_shorter_record(tmp_path):
    mine = claim(tmp_path, "trained")
    inode = path_of(tmp_path, 1).stat().st_ino
    for pids in ([os.getpid()] * 40, []):
        mine.add(pids)
        content = content_of(tmp_path, 1)
        assert content is not None and len(json.loads(content)["ranks"]) == len(pids)
    before = content_of(tmp_path, 1)
    until = time.monotonic() + 10
    while content_of(tmp_path, 1) == before:
        assert time.monotonic() < until
    assert path_of(tmp_path, 1).stat().st_ino == inode
    mine.release()


def test_an_owner_that_lost_its_folder_leaves_the_new_ones_claim_alone(tmp_path):
    first = claim(tmp_path, "trained")
    standing = Standing.of(tmp_path)
    standing.check()
    file = create(tmp_path, 2, Record.mine("trained"))
    assert file is not None
    with pytest.raises(CheckpointError, match=f"taken over by pid {os.getpid()} "):
        standing.check()
    first.release()
    assert numbers_of(tmp_path) == [1, 2]
    os.close(file)


def test_a_rank_on_another_machine_than_the_owner_does_not_judge(tmp_path):
    leave(tmp_path, machine=replace(Machine.here(), host="another"))
    standing = Standing.of(tmp_path)
    leave(tmp_path)
    standing.check()


def test_a_folder_that_is_no_run_is_not_owned_and_one_that_is_read_only_is_refused(tmp_path, monkeypatch):
    with owning(tmp_path, "evaluated"):
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ZeroDivisionError), owning(tmp_path, "evaluated"):
        assert numbers_of(tmp_path) == [1]
        raise ZeroDivisionError
    assert numbers_of(tmp_path) == []
    monkeypatch.setattr(os, "open", _read_only)
    with pytest.raises(ConfigError, match="cannot be written: Read-only file system"):
        with owning(tmp_path, "evaluated"):
            pass


def _read_only(*_):
    raise OSError(30, "Read-only file system")
