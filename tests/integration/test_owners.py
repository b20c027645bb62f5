"""A run folder has one living owner: second commands of every sort, owners that are killed, two hosts."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from sae_dist import cli
from tests.helpers.commands import TINY, rows, sae_dist, start
from tests.helpers.runs import rank_process, wait_for_checkpoint
from tests.helpers.small_llm import SMALL, save_small_llm
from tests.helpers.sockets import beyond_loopback, listening_of
from tests.helpers.warm import Command, warm

LONG = [*TINY, *SMALL, "train_tokens=50M", "checkpoint.every=1920", "name=run"]
SHORT = [*LONG, "train_tokens=19200"]
RUN = "outputs/run"
SECONDS = [
    ["train", *LONG, "resume=auto"],
    ["resume", RUN],
    ["eval", RUN],
    ["export", RUN],
    ["report", RUN],
]


@pytest.fixture(autouse=True)
def small_llm(tmp_path):
    save_small_llm(tmp_path)


def state(run):
    """Of the files that a second command could touch, what they are."""
    found = {}
    for path in (run, run / "metrics.jsonl", run / "config.yaml", run / "provenance.json"):
        found[path.name] = path.stat().st_ino
    return found | {name: (run / name).read_text() for name in ("config.yaml", "provenance.json")}


@pytest.mark.long
def test_a_second_command_is_refused_by_name_and_changes_nothing(tmp_path, monkeypatch, capfd):
    process = Command(tmp_path, "train", *LONG)
    run = tmp_path / RUN
    wait_for_checkpoint(process, run)
    assert beyond_loopback(listening_of(process.pid)) == set()
    # One that stands still lives, too; and it leaves the cores to the others.
    process.send_signal(signal.SIGSTOP)
    before = state(run)
    monkeypatch.chdir(tmp_path)
    for words in SECONDS:
        assert cli.main(words) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1, (words, out, err)
        assert f"{RUN} is being trained by pid {process.pid} on host" in err
    assert state(run) == before and not (run / "export").exists() and not (run / "report.html").exists()

    # Killed, it is followed at once, and what it left is cleared away.
    process.send_signal(signal.SIGKILL)
    assert cli.main(["export", RUN]) == 0
    assert (run / "export" / "cfg.json").is_file() and list(run.glob(".owner*")) == []
    process.communicate()


@pytest.mark.long
def test_a_cache_that_is_being_filled(tmp_path):
    words = ["harvest", "train_tokens=2M", "name=cache", "hook=layers.0"]
    process = Command(tmp_path, *words)
    cache, until = tmp_path / "outputs" / "cache", time.monotonic() + 120
    while not any(cache.glob("shards/*.tar")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    assert beyond_loopback(listening_of(process.pid)) == set()
    for more in ([], ["resume=auto"]):
        done = warm(tmp_path, *words, *more)
        assert done.returncode == 2 and f"is being filled by pid {process.pid} on" in done.stderr
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.poll() == 75 and list(cache.glob(".owner*")) == []


@pytest.mark.long
def test_two_that_start_at_once(tmp_path):
    """A new folder, then one that goes on: one trains, the others are refused, and the run is whole."""
    for more in ([], ["resume=auto"]):
        tries = [Command(tmp_path, "train", *SHORT, *more) for _ in range(3)]
        said = [each.communicate()[1] for each in tries]
        codes = [each.poll() for each in tries]
        # Those that come after its end find it finished.
        assert codes.count(0) >= 1 and set(codes) <= {0, 2}, said
        winners = [each.pid for each, code in zip(tries, codes, strict=True) if code == 0]
        for code, text in zip(codes, said, strict=True):
            assert code == 0 or any(f"being trained by pid {pid} " in text for pid in winners), text
        assert [row["step"] for row in rows(tmp_path / RUN)] == list(range(1, 101))
        assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["run"]
        (tmp_path / RUN / "summary.json").unlink()


@pytest.mark.long
@pytest.mark.parametrize("victim", ["parent", "rank"])
def test_ranks_of_one_parent(tmp_path, victim):
    """The parent that started them is killed, or it is refused while they train; both resume at once."""
    words = [*SHORT, "topology.shard=2", "metrics.every=1"]
    process = start(tmp_path, "train", *words, "train_tokens=50M")
    run = tmp_path / RUN
    wait_for_checkpoint(process, run)
    ranks = [rank_process(process, rank) for rank in (0, 1)]
    refused = sae_dist(tmp_path, "resume", RUN)
    assert refused.returncode == 2 and f"is being trained by pid {process.pid} on" in refused.stderr
    os.kill(process.pid if victim == "parent" else ranks[1].pid, signal.SIGKILL)
    if victim == "rank":
        process.communicate()
    again = start(tmp_path, "resume", RUN)
    # What is written once those ranks are gone is written by the new ones.
    assert psutil.wait_procs(ranks, timeout=20)[1] == []
    last = (run / "checkpoints" / "latest").read_text().strip()
    wait_for_checkpoint(again, run, after=last)
    again.send_signal(signal.SIGTERM)
    assert again.communicate()[0] is not None and again.returncode == 75
    process.communicate()
    steps = [row["step"] for row in rows(run)]
    assert steps == list(range(1, len(steps) + 1)) and list(run.glob(".owner*")) == []


def other_host(name, folder, *words):
    """A command under another hostname, in a namespace of processes of its own."""
    command = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    inner = f'hostname {name} && exec "$0" "$@"'
    options = {"cwd": folder, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sae_dist.cli", *words]
    return subprocess.Popen([*command, inner, *words], env=environment, **options)


@pytest.mark.long
def test_two_hosts_over_one_folder(tmp_path):
    """Neither sees the processes of the other; both see what is written."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("namespaces need root and unshare (util-linux)")
    if subprocess.run(["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"]).returncode:
        pytest.skip("there are no namespaces here")
    first = other_host("one", tmp_path, "train", *LONG)
    run = tmp_path / RUN
    wait_for_checkpoint(first, run)
    before = state(run)
    second = other_host("two", tmp_path, "resume", RUN)
    assert second.wait(120) == 2
    assert "is being trained by pid 1 on host one, since" in second.communicate()[1]
    assert state(run) == before and first.poll() is None

    psutil.Process(first.pid).children()[0].kill()
    first.communicate()
    last = (run / "checkpoints" / "latest").read_text().strip()
    second = other_host("two", tmp_path, "resume", RUN)
    wait_for_checkpoint(second, run, after=last)
    psutil.Process(second.pid).children()[0].send_signal(signal.SIGTERM)
    said = second.communicate(timeout=120)[1]
    assert "belongs to pid 1 on host one, since" in said and "looking for a sign of life" in said
    assert list(run.glob(".owner*")) == []
