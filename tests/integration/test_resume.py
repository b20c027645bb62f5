"""Kill ranks after checkpoints, run the same command with resume=auto: nothing lost, nothing twice."""

import json
import os
import re
import shutil
import signal
import time

import pytest

from sae_dist.checkpoint.read import complete
from sae_dist.config.rules.checkpoint import checkpoint_bytes
from sae_dist.config.run import load_config
from tests.helpers.commands import TINY, rows, train
from tests.helpers.runs import LENGTH, SPLIT, rank_process, results, same_weights, wait_for_checkpoint
from tests.helpers.small_llm import WIDTH
from tests.helpers.warm import Command, warm


@pytest.fixture(scope="module")
def whole(folder):
    return train(folder, "whole", *LENGTH)


def test_a_checkpoint_is_as_large_as_was_counted(folder, whole):
    run = folder / "outputs" / "whole"
    counted = checkpoint_bytes(load_config(run / "config.yaml"), WIDTH)
    for checkpoint in complete(run / "checkpoints"):
        assert abs(sum(file.stat().st_size for file in checkpoint.iterdir()) / counted - 1) < 0.02
    pauses = json.loads((run / "summary.json").read_text())["checkpoint_pauses"]
    assert pauses["number"] == 10 and 0 < pauses["longest"] < pauses["seconds"] < 60


@pytest.mark.long
def test_killed_ranks(folder, whole):
    """In turn the rank that writes, the producer, another consumer; the end is that of a run without it."""
    arguments = ["train", *TINY, *LENGTH, *SPLIT, "name=killed"]
    run, checkpoint = folder / "outputs" / "killed", None
    for victim in (0, 2, 1):
        process = Command(folder, *arguments, *(["resume=auto"] if checkpoint else []))
        checkpoint = wait_for_checkpoint(process, run, checkpoint)
        began = time.monotonic()
        rank_process(process, victim).send_signal(signal.SIGKILL)
        err = process.communicate(timeout=60)[1]
        assert time.monotonic() - began < 30 and process.poll() == 1
        said = [line for line in err.splitlines() if line.startswith("sae-dist: error:")]
        told = rf"rank {victim} was killed by SIGKILL \(host \S+, last checkpoint step_\d+\); go on:"
        assert len(said) == 1 and re.match(f"sae-dist: error: {told} sae-dist resume outputs/killed", said[0])
        assert "Traceback" not in err
        # What was still being written when the rank was killed may have come after the checkpoint seen.
        checkpoint = (run / "checkpoints" / "latest").read_text().strip()

    refused = warm(folder, *arguments)
    at = f"unfinished, at step {int(checkpoint.removeprefix('step_'))} of 100"
    assert refused.returncode == 2 and f"{at}; continue with sae-dist resume outputs/killed" in refused.stderr
    done = warm(folder, *arguments, "resume=auto", ranks=3)
    assert done.returncode == 0, done.stderr
    found = rows(run)
    assert [row["step"] for row in found] == list(range(1, 101))
    train(folder, "split", *LENGTH, *SPLIT)
    assert results(run) == results(folder / "outputs" / "split")
    assert same_weights(folder / "outputs" / "split", run)
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
    process = Command(folder, *arguments)
    wait_for_checkpoint(process, folder / "outputs" / "bitwise")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train(folder, "bitwise", *LENGTH, "resume=auto")
    assert results(folder / "outputs" / "bitwise") == results(folder / "outputs" / "whole")
    assert same_weights(folder / "outputs" / "whole", folder / "outputs" / "bitwise")


@pytest.mark.long
def test_sigterm_saves_and_exits_75(folder):
    longer = ["train_tokens=153600", "checkpoint.every=7680", "activations=synthetic", "topology.shard=2"]
    process = Command(folder, "train", *TINY, *longer, "name=preempted")
    run = folder / "outputs" / "preempted"
    wait_for_checkpoint(process, run)
    os.kill(process.pid, signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.poll() == 75, err
    assert re.search(
        r"^sae-dist: stopped at step \d+ as asked; .* sae-dist resume outputs/preempted$", err, re.M
    )
    stopped_at = rows(run)[-1]["step"]
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step_{stopped_at:08d}"
    found = train(folder, "preempted", *longer, "resume=auto")
    assert [row["step"] for row in found] == list(range(1, 201))


def test_a_finished_run_becomes_longer(folder, whole):
    """It goes on with the batches that follow; settings that came from its first length stay."""
    longer = ["train_tokens=23040", *LENGTH[1:]]
    run = shutil.copytree(folder / "outputs" / "whole", folder / "outputs" / "longer")
    refused = warm(folder, "train", *TINY, *longer, "name=longer")
    assert refused.returncode == 2 and "begun with train_tokens=19200" in refused.stderr
    found = train(folder, "longer", *longer, "resume=auto")
    assert [row["step"] for row in found] == list(range(1, 121))
    assert results(run)[:100] == results(folder / "outputs" / "whole")
    assert json.loads((run / "summary.json").read_text())["tokens"] == 23040
