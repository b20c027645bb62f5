"""The data of a producer are bad, in the middle of a real run: named, and soon. Killed ranks: test_resume."""

import io
import json
import tarfile
import time

from tests.commands import TINY, rows, sae_dist
from tests.integration.test_resume import SPLIT


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
