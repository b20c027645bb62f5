"""Faults in the middle of real runs: named, soon and once; nothing before the last checkpoint is lost.

Ranks that are killed one at a time, and what they resume to: test_resume. A link that is cut: test_hosts.
"""

import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from contextlib import contextmanager

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.checkpoint.read import complete, load_full, newest
from sae_dist.checkpoint.storage import damage
from tests.helpers.commands import TINY, rows, train
from tests.helpers.processor_time import host_factor
from tests.helpers.runs import LENGTH, SPLIT, rank_process, wait_for_checkpoint
from tests.helpers.small_llm import SMALL, save_small_llm
from tests.helpers.sockets import beyond_loopback, listening_of
from tests.helpers.tiny_llms import save_tiny
from tests.helpers.warm import Command, context, warm
from tests.soak import kills, saves

HOST = socket.gethostname()


def errors(err):
    return [line for line in err.splitlines() if line.startswith("sae-dist: error:")]


def write_shard(path, bad=None, rare=None):
    """400 samples of token ids; one is of another vocabulary, or holds the token `rare` alone."""
    with tarfile.open(path, "w") as tar:
        for number in range(400):
            ids = [(number * 7 + place * 13) % 1000 + 5 for place in range(300)]
            ids = [10**7] if number == bad else [2000] * 20 if number == rare else ids
            content = json.dumps(ids).encode()
            member = tarfile.TarInfo(f"{number:06d}.ids.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.long
def test_bad_data_on_a_producer_is_told_to_all(tmp_path):
    write_shard(tmp_path / "shard.tar", bad=250)
    tokens = ["tokens=webdataset", "tokens.path=shard.tar", "train_tokens=76800", "name=bad"]
    began = time.monotonic()
    done = warm(tmp_path, "train", *TINY, *tokens, *SPLIT)
    assert done.returncode == 1 and time.monotonic() - began < 120 * host_factor()
    said = errors(done.stderr)
    assert len(said) == 1 and said[0].startswith("sae-dist: error: rank 2: ") and "000250.ids.json" in said[0]
    assert f"(host {HOST}" in said[0]
    run = tmp_path / "outputs" / "bad"
    assert len(rows(run)) > 5
    for consumer in (0, 1):
        reason = (run / "logs" / f"rank_{consumer}.error").read_text()
        assert reason.startswith("rank 2 failed: ") and "000250.ids.json" in reason


def test_activations_of_the_llm_that_are_not_finite(tmp_path):
    """One row of its embedding, of a token that comes once, is NaN."""
    save_tiny("llama", tmp_path / "llm")
    weights = load_file(tmp_path / "llm" / "model.safetensors")
    weights["model.embed_tokens.weight"][2000] = torch.nan
    save_file(weights, tmp_path / "llm" / "model.safetensors", metadata={"format": "pt"})
    write_shard(tmp_path / "shard.tar", rare=250)
    words = ["llm.name=llm", "tokens=webdataset", "tokens.path=shard.tar", "train_tokens=76800", "name=nan"]
    done = warm(tmp_path, "train", *TINY, *words, "checkpoint.every=1536")
    said = errors(done.stderr)
    assert done.returncode == 1 and len(said) == 1
    assert "the activations at layers.1:out of chunk " in said[0] and "are not finite" in said[0]
    assert f"(host {HOST}, step " in said[0]
    assert damage(newest(tmp_path / "outputs" / "nan")) is None


@pytest.mark.long
def test_random_kills(tmp_path):
    """Ten, of every role, while ranks start, train, save, export; then the run is that without kills."""
    seconds, victims, runs = kills.left_alone(tmp_path, "alone"), [], 0
    while len(victims) < 10:
        name, chance = f"run_{runs}", random.Random(runs)
        victims += kills.killed(tmp_path, name, chance, seconds, 10 - len(victims))
        assert kills.difference(tmp_path, name, "alone") is None, f"{name} after killing {victims}"
        runs += 1
    assert set(victims) == set(range(kills.RANKS))


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.long)])
def test_kills_during_a_save(times, tmp_path):
    """Of a process that does nothing else: every checkpoint that is there is whole."""
    chance, before = random.Random(times), 0
    for _ in range(times):
        process = context().Process(target=saves.for_ever, args=(tmp_path,), daemon=True)
        process.start()
        until = time.monotonic() + 60
        while not (found := complete(tmp_path / "checkpoints")) or int(found[-1].name[5:]) <= before:
            assert process.is_alive() and time.monotonic() < until
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.04))
        process.kill()
        process.join()
        found = complete(tmp_path / "checkpoints")
        assert [damage(path) for path in found] == [None] * len(found)
        tensors, scalars = load_full(found[-1], ["W"])
        before = scalars["step"]
        assert int(found[-1].name[5:]) == before and bool((tensors["W"] == before).all())
    latest = (tmp_path / "checkpoints" / "latest").read_text().strip()
    assert latest in [path.name for path in complete(tmp_path / "checkpoints")]


def test_a_signal_to_one_rank_stops_all_and_saves(tmp_path):
    words = ["train", *TINY, *LENGTH[1:], "train_tokens=50M", "name=preempted", "topology.shard=2"]
    process = Command(save_small_llm(tmp_path), *words, ranks=2)
    run = tmp_path / "outputs" / "preempted"
    wait_for_checkpoint(process, run)
    os.kill(process.processes[1].pid, signal.SIGUSR2)
    err = process.communicate(timeout=120)[1]
    assert [rank.exitcode for rank in process.processes] == [75, 75], err
    assert errors(err) == [] and err.count(f"as asked; checkpoint saved. Go on: sae-dist resume {run}") == 1
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step_{rows(run)[-1]['step']:08d}"
    assert damage(newest(run)) is None


@pytest.mark.long
@pytest.mark.parametrize("victim", [1, 2])
def test_a_rank_that_stands_still_is_named(tmp_path, victim):
    """A consumer, whom all others wait for in the end, and a producer."""
    words = [*LENGTH[1:], *SPLIT[:2], "topology.timeout_s=12", "train_tokens=50M", "name=still"]
    process = Command(save_small_llm(tmp_path), "train", *TINY, *words)
    wait_for_checkpoint(process, tmp_path / "outputs" / "still")
    ranks = psutil.Process(process.pid).children(recursive=True)
    sockets = listening_of(process.pid)
    assert len(sockets) > 3 and beyond_loopback(sockets) == set(), "the store, and each rank's own"
    rank_process(process, victim).send_signal(signal.SIGSTOP)
    began = time.monotonic()
    err = process.communicate(timeout=90)[1]
    assert process.poll() == 1 and time.monotonic() - began < 12 + 45
    said = errors(err)
    assert len(said) == 1 and f"rank {victim} (host {HOST}" in said[0] and "shows no sign of life" in said[0]
    assert psutil.wait_procs(ranks, timeout=10)[1] == []
    assert damage(newest(tmp_path / "outputs" / "still")) is None


@contextmanager
def small_disk(folder, mebibytes):
    if os.geteuid() != 0:
        pytest.skip("a file system of a few MiB needs root to mount it")
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    tried = subprocess.run(["mount", *options], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {tried.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.long
def test_a_disk_that_fills_up(tmp_path):
    with small_disk(tmp_path / "outputs", 128):
        words = ["train_tokens=76800", "checkpoint.every=7680", "name=full"]
        process = Command(tmp_path, "train", *TINY, *words)
        wait_for_checkpoint(process, tmp_path / "outputs" / "full")
        with open(tmp_path / "outputs" / "filler", "wb") as filler:
            filler.write(bytes(shutil.disk_usage(tmp_path / "outputs").free - (8 << 20)))
        err = process.communicate(timeout=120)[1]
        said = errors(err)
        assert process.poll() == 1 and len(said) == 1, err
        assert "cannot write a checkpoint" in said[0] and "older checkpoints are intact" in said[0]
        assert damage(newest(tmp_path / "outputs" / "full")) is None
        (tmp_path / "outputs" / "filler").unlink()
        found = train(tmp_path, "full", *words[:2], "resume=auto")
        assert [row["step"] for row in found] == list(range(1, 101))


@pytest.mark.long
def test_wandb_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    words = [*TINY, *SMALL, "train_tokens=9600", "metrics.wandb=online", "name=unreachable"]
    began = time.monotonic()
    done = warm(save_small_llm(tmp_path), "train", *words)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "outputs" / "unreachable")) == 50
    assert "wandb (online) failed, the run goes on" in done.stderr
    assert time.monotonic() - began < 120
