"""What a rank believes of the answer that the store has in rank 0's name, and which of them says what."""

import json
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from sae_dist.config.trust import NOTHING
from sae_dist.core.errors import CheckpointError, DataError, TransportError
from sae_dist.core.place import Place
from sae_dist.launch import join, start
from sae_dist.launch.freeze import Frozen

NOBODY = 65534


def told(monkeypatch, **answer):
    """What rank 1 makes of an answer."""
    store = dist.HashStore()
    store.set("launch/run", json.dumps(answer))
    monkeypatch.setattr(join, "store_of", lambda where, timeout_s: store)
    return join.agree_on_run(Place(1, 2, 1, 2), lambda: pytest.fail("rank 0 prepares"))


@pytest.mark.parametrize("config", ["config.yaml", "harvest.yaml", "one/config.yaml"])
def test_a_folder_is_read_that_this_user_froze_and_never_removed(monkeypatch, tmp_path, config):
    (tmp_path / config).parent.mkdir(exist_ok=True)
    (tmp_path / config).write_text("seed: 0\n")
    found = told(monkeypatch, folder=str(tmp_path), finished=False, made=[str(tmp_path)])
    assert found == Frozen(tmp_path)
    found.discard()
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [tmp_path / config]


@pytest.mark.parametrize(
    "place", ["elsewhere", "empty", "another's", "a link to another's", "of another's part"]
)
def test_no_other_folder_is(monkeypatch, tmp_path, place):
    hostile, config = tmp_path / "run", tmp_path / "run" / "config.yaml"
    hostile.mkdir()
    if place == "of another's part":
        config.write_text("seed: 0\n")
        config = hostile / "part" / "config.yaml"
        config.parent.mkdir()
    if "another's" in place:
        if os.geteuid() != 0:
            pytest.skip("a file of another user needs root")
        config.write_text("llm: {trust_remote_code: true}\n")
        os.chown(config, NOBODY, NOBODY)
    if place == "a link to another's":
        config.rename(tmp_path / "theirs")
        config.symlink_to(tmp_path / "theirs")
        os.chown(config, NOBODY, NOBODY, follow_symlinks=False)
    folder = Path("/proc") if place == "elsewhere" else hostile
    with pytest.raises(TransportError, match="where this rank cannot write|no folder that this user froze"):
        told(monkeypatch, folder=str(folder), finished=False)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "error,known",
    [
        (CheckpointError("cannot write a checkpoint"), True),
        (TransportError("rank 0 failed: OSError: Input/output error"), True),
        (TransportError("rank 2 failed: shard 7 is damaged"), False),
        (DataError("shard 7 is damaged"), False),
    ],
)
def test_rank_0_alone_says_what_all_ranks_know(monkeypatch, tmp_path, rank, error, known):
    def work(folder, granted):
        raise error

    monkeypatch.setattr(start, "place", lambda: Place(rank, 2, rank, 2))
    monkeypatch.setattr(join, "agree_on_run", lambda where, prepare: Frozen(tmp_path))
    role = start.Role("train", lambda folder: 2, work)
    with pytest.raises(join.SaidByRankZero if known and rank else type(error)) as failure:
        start._join(lambda world: Frozen(tmp_path), role, lambda folder, granted: None, lambda: NOTHING)
    assert failure.value.exit_code == 1
