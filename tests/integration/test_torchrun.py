"""Inside torchrun the command joins instead of spawning."""

import re
import signal

import psutil
import pytest

from tests.helpers.commands import TINY, rows, sae_dist, start
from tests.helpers.runs import wait_for_checkpoint
from tests.helpers.small_llm import SMALL, save_small_llm
from tests.helpers.sockets import beyond_loopback, listening

pytestmark = pytest.mark.long

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone")


def test_joins_as_a_rank(tmp_path):
    done = sae_dist(
        save_small_llm(tmp_path),
        "train",
        *TINY,
        *SMALL,
        "train_tokens=3840",
        "name=joined",
        "topology.shard=2",
        launcher=TORCHRUN,
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "outputs" / "joined")] == list(range(1, 21))
    assert (tmp_path / "outputs" / "joined" / "export" / "cfg.json").exists()


def test_wrong_world_size_is_one_line(tmp_path):
    done = sae_dist(tmp_path, "train", *TINY, "name=wrong", "topology.shard=4", launcher=TORCHRUN)
    ours = [line for line in done.stderr.splitlines() if line.startswith("sae-dist: error:")]
    assert done.returncode != 0
    assert len(ours) == 1 and "topology" in ours[0] and "2" in ours[0]
    assert not (tmp_path / "outputs" / "wrong").exists()


def test_a_killed_worker_is_started_again_from_the_last_checkpoint(tmp_path, monkeypatch):
    """By torchrun itself, within its job: the command with resume=auto is all that it needs."""
    save_small_llm(tmp_path)
    length = [*SMALL, "train_tokens=19200", "checkpoint.every=1920", "topology.shard=2", "resume=auto"]
    words, again = ["train", *TINY, *length, "name=again"], (*TORCHRUN, "--max-restarts", "1")
    refused = sae_dist(tmp_path, *words, launcher=again)
    ours = [line for line in refused.stderr.splitlines() if line.startswith("sae-dist: error:")]
    assert refused.returncode and {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in line for line in ours} == {True}
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    process = start(tmp_path, *words, launcher=again)
    run = tmp_path / "outputs" / "again"
    wait_for_checkpoint(process, run, timeout_s=400)
    workers = psutil.Process(process.pid).children(recursive=True)
    (victim,) = (each for each in workers if each.environ().get("RANK") == "1" and "train" in each.cmdline())
    # torchrun's own store is its own matter.
    ranks = [each.pid for each in workers if "RANK" in each.environ()]
    assert beyond_loopback(set().union(*map(listening, ranks))) == set() and len(ranks) >= 2
    victim.send_signal(signal.SIGKILL)
    err = process.communicate(timeout=600)[1]
    assert process.returncode == 0, err
    first, second = map(int, re.findall(r"from step (\d+)", err))
    assert first == 0 and second > 0
    assert [row["step"] for row in rows(run)] == list(range(1, 101))
    assert (run / "export" / "cfg.json").exists()
