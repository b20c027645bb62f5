"""Kill a rank after a checkpoint, run the same command with resume=auto: nothing lost, nothing twice."""

import json
import os
import signal
import time

import psutil
import pytest
from safetensors.torch import load_file

from tests.commands import TINY, rows, sae_dist, start, train

LENGTH = ["train_tokens=76800", "checkpoint.every=15360", "activations.scaling=centred"]


def wait_for_checkpoint(process, run, timeout_s=180):
    until = time.monotonic() + timeout_s
    while not (run / "checkpoints" / "latest").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no checkpoint in time"
        time.sleep(0.05)


def rank_process(process, rank):
    """The process of a rank, among the children of the command."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank) and "rank" in child.cmdline():
            return child
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(folder):
    return train(folder, "whole", *LENGTH)


def weights(folder, name):
    return load_file(folder / "outputs" / name / "export" / "sae_weights.safetensors")


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank(victim, folder, whole):
    """Of the consumers; test_faults kills the producer."""
    name, topology = f"killed_{victim}", ["topology.producers=1", "topology.shard=2"]
    arguments = ["train", *TINY, *LENGTH, f"name={name}", *topology]
    process = start(folder, *arguments)
    run = folder / "outputs" / name
    wait_for_checkpoint(process, run)
    rank_process(process, victim).send_signal(signal.SIGKILL)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert f"rank {victim}" in err and "Traceback" not in err

    refused = sae_dist(folder, *arguments)
    assert refused.returncode == 2 and "resume=auto" in refused.stderr
    done = sae_dist(folder, *arguments, "resume=auto")
    assert done.returncode == 0, done.stderr
    found = rows(run)
    assert [row["step"] for row in found] == list(range(1, 101))
    hashes = [row["stream/batch_hash"] for row in found]
    assert hashes == [row["stream/batch_hash"] for row in whole]
    assert abs(found[-1]["loss/fvu"] / whole[-1]["loss/fvu"] - 1) < 0.03

    assert "producers waited" in done.stderr
    balance = json.loads((run / "summary.json").read_text())["balance"]
    assert 0 <= balance["consumers_waited"] <= 1 and 0 <= balance["producers_waited"] <= 1
    assert balance["chunk_busy_s"] > 0 and balance["step_busy_s"] > 0
    assert sum(row["perf/wait_for_credit_s"] for row in found) > 0


def test_resume_of_one_process_is_bitwise(folder, whole):
    arguments = ["train", *TINY, *LENGTH, "name=bitwise"]
    process = start(folder, *arguments)
    run = folder / "outputs" / "bitwise"
    wait_for_checkpoint(process, run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sae_dist(folder, *arguments, "resume=auto")
    assert done.returncode == 0, done.stderr
    kept = "step loss/total loss/fvu loss/aux sparsity/l0 stream/batch_hash optim/grad_norm".split()
    assert [[row[key] for key in kept] for row in rows(run)] == [[row[key] for key in kept] for row in whole]
    for key, tensor in weights(folder, "whole").items():
        assert tensor.equal(weights(folder, "bitwise")[key]), key


def test_sigterm_saves_and_exits_75(folder, whole):
    arguments = ["train", *TINY, *LENGTH, "name=preempted", "topology.shard=2"]
    process = start(folder, *arguments)
    run = folder / "outputs" / "preempted"
    wait_for_checkpoint(process, run)
    os.kill(process.pid, signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 75, err
    assert "resume=auto" in err
    stopped_at = rows(run)[-1]["step"]
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step_{stopped_at:08d}"
    assert sae_dist(folder, *arguments, "resume=auto").returncode == 0
    assert [row["step"] for row in rows(run)] == list(range(1, 101))
