"""A producer is killed, or its data is bad, in the middle of a real run: named, soon, and nothing is lost."""

import io
import json
import signal
import tarfile
import time

from tests.commands import TINY, rows, sae_dist, start, train
from tests.integration.test_resume import rank_process, wait_for_checkpoint, weights

LENGTH = ["train_tokens=38400", "checkpoint.every=15360"]
SPLIT = ["topology.producers=1", "topology.shard=2", "topology.timeout_s=300"]
TIMES = ("perf/", "system/")


def results(run):
    """What a run computed, step by step; not how fast."""
    return [{key: row[key] for key in row if not key.startswith(TIMES)} for row in rows(run)]


def test_a_killed_producer(tmp_path):
    train(tmp_path, "whole", *LENGTH, *SPLIT)
    arguments = ["train", *TINY, *LENGTH, *SPLIT, "name=killed"]
    process = start(tmp_path, *arguments)
    run = tmp_path / "outputs" / "killed"
    wait_for_checkpoint(process, run)
    began = time.monotonic()
    rank_process(process, 2).send_signal(signal.SIGKILL)
    err = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 30 and process.returncode == 1
    said = [line for line in err.splitlines() if line.startswith("sae-dist: error:")]
    assert said == ["sae-dist: error: rank 2 was killed by SIGKILL; continue with resume=auto"]

    done = sae_dist(tmp_path, *arguments, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert results(run) == results(tmp_path / "outputs" / "whole")
    for key, tensor in weights(tmp_path, "whole").items():
        assert tensor.equal(weights(tmp_path, "killed")[key]), key


def write_shard(path, bad):
    """400 samples of token ids, one of which is of another vocabulary."""
    with tarfile.open(path, "w") as tar:
        for number in range(400):
            ids = [(number * 7 + place * 13) % 1000 + 5 for place in range(300)]
            content = json.dumps([10**7] if number == bad else ids).encode()
            member = tarfile.TarInfo(f"{number:06d}.ids.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_bad_data_on_a_producer_is_told_to_all(tmp_path):
    write_shard(tmp_path / "shard.tar", bad=250)
    tokens = ["tokens=webdataset", "tokens.path=shard.tar", "train_tokens=76800", "name=bad"]
    began = time.monotonic()
    done = sae_dist(tmp_path, "train", *TINY, *tokens, *SPLIT)
    assert done.returncode == 1 and time.monotonic() - began < 120
    said = [line for line in done.stderr.splitlines() if line.startswith("sae-dist: error:")]
    assert len(said) == 1 and said[0].startswith("sae-dist: error: rank 2: ") and "000250.ids.json" in said[0]
    run = tmp_path / "outputs" / "bad"
    assert len(rows(run)) > 5
    for consumer in (0, 1):
        reason = (run / "logs" / f"rank_{consumer}.error").read_text()
        assert reason.startswith("rank 2 failed: ") and "000250.ids.json" in reason
