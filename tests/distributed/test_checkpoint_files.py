"""Checkpoints written in the background, those that stay, files that are damaged or not what they seem."""

import hashlib
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.checkpoint.background import Background
from sae_dist.checkpoint.read import complete, load_full, newest
from sae_dist.checkpoint.storage import damage, seal
from sae_dist.checkpoint.store import Checkpoints
from sae_dist.core.errors import CheckpointError
from sae_dist.core.place import Place
from sae_dist.distributed.runtime import finish, start
from sae_dist.train import start as training
from tests.distributed.test_checkpoint import row_ids, topology, trained_to
from tests.helpers.ranks import run_ranks


@pytest.fixture
def one_rank():
    start(Place(0, 1, 0, 1), "cpu", 60.0)
    yield
    finish()


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in complete(folder / "checkpoints")]


def _save_twice_in_the_background(folder: Path) -> tuple[list[float], list[int]]:
    topo = topology(2, 1)
    store = Checkpoints(folder, topo, 5, background=Background())
    W = torch.nn.Parameter(row_ids(topo))
    for step in (1, 2):
        store.save(step, {"W": (W, "sharded")}, {"step": step})
        W.data.add_(1000)  # training goes on at once
    store.wait()
    return [
        float(load_full(folder / "checkpoints" / f"step_0000000{n}", ["W"])[0]["W"][0, 0]) for n in (1, 2)
    ], (saved_steps(folder))


def test_a_checkpoint_holds_what_was_when_it_was_asked_for(tmp_path):
    assert run_ranks(_save_twice_in_the_background, 2, tmp_path) == [([0.0, 1000.0], [1, 2])] * 2


def test_a_step_does_not_wait_for_the_disk_and_the_next_checkpoint_does(
    tmp_path, one_rank, monkeypatch, capsys
):
    go_on, began = threading.Event(), threading.Event()

    def slow(*arguments):
        began.set()
        assert go_on.wait(30)
        seal(*arguments)

    monkeypatch.setattr("sae_dist.checkpoint.store.seal", slow)
    store = Checkpoints(tmp_path, topology(1, 1), 5, background=Background())
    W = {"W": (torch.zeros(4, 2), "sharded")}
    store.save(1, W, {})
    assert began.wait(30) and saved_steps(tmp_path) == []
    store.check()
    threading.Timer(0.3, go_on.set).start()
    store.save(2, W, {})
    assert 1 in saved_steps(tmp_path)
    assert "step 2: waits for the previous checkpoint" in capsys.readouterr().err
    store.wait()
    assert saved_steps(tmp_path) == [1, 2]


def test_what_fails_in_the_background_is_raised_at_the_next_look(tmp_path, one_rank, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = Checkpoints(tmp_path, topology(1, 1), 5, background=Background())
    W = {"W": (torch.zeros(4, 2), "sharded")}
    store.save(1, W, {})
    store.wait()
    monkeypatch.setattr("sae_dist.checkpoint.store.seal", full)
    store.save(2, W, {})
    while not store._job.done():
        pass
    with pytest.raises(CheckpointError, match="No space left on device.*older checkpoints are intact"):
        store.check()
    store.check()
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step_00000001"


def test_multiples_stay_for_good(tmp_path, one_rank):
    store = Checkpoints(tmp_path, topology(1, 1), keep=2, keep_steps=4)
    for step in range(1, 12):
        store.save(step, {"W": (torch.zeros(2, 2), "sharded")}, {})
    assert saved_steps(tmp_path) == [4, 8, 10, 11]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


HARMS = {
    "is not what was written: its sha256 differs": ("rows_00001.safetensors", flip),
    "bytes of": ("rows_00001.safetensors", shorten),
    "rows_00001.safetensors is missing": ("rows_00001.safetensors", Path.unlink),
    "state.json is not what was written": ("state.json", flip),
    "checksums.json is missing": ("checksums.json", Path.unlink),
    "checksums.json is not readable": ("checksums.json", shorten),
}


@pytest.mark.parametrize("said", HARMS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, one_rank, capsys, said):
    run = trained_to(tmp_path / "run", [1, 2, 4])
    name, harm = HARMS[said]
    harm(tmp_path / "run" / "checkpoints" / "step_00000004" / name)
    if harm is shorten and name == "checksums.json":
        harm(tmp_path / "run" / "checkpoints" / "step_00000004" / name)
    assert newest(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "step_00000002"
    capsys.readouterr()
    training.start([run])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "checkpoint passed over: step_00000004/" in lines[0] and said in lines[0]
    assert run.progress.step == 2 and run.W.tolist() == [2.0] * 3
    assert saved_steps(tmp_path / "run") == [1, 2]


def test_no_sound_checkpoint_is_an_error_and_nothing_is_removed(tmp_path, one_rank):
    run = trained_to(tmp_path / "run", [1, 2])
    for path in complete(tmp_path / "run" / "checkpoints"):
        flip(path / "rows_00001.safetensors")
    for read in (lambda: newest(tmp_path / "run"), lambda: training.start([run])):
        with pytest.raises(CheckpointError, match=r"no sound checkpoint \(step_00000002/.*step_00000001/"):
            read()
    assert saved_steps(tmp_path / "run") == [1, 2]


def _damage_seen(folder: Path) -> list[str | None]:
    store = Checkpoints(folder, topology(2, 1), 1)
    return [store.damage(path) for path in complete(folder / "checkpoints")]


def test_ranks_that_read_different_files_agree(tmp_path):
    run_ranks(_save_twice_in_the_background, 2, tmp_path)
    flip(tmp_path / "checkpoints" / "step_00000001" / "rows_00002.safetensors")
    seen = run_ranks(_damage_seen, 2, tmp_path)
    assert (
        seen
        == [["step_00000001/rows_00002.safetensors is not what was written: its sha256 differs", None]] * 2
    )


class Planted:
    """Unpickled, it would leave a file behind."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["rows_00001.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_planted_pickle_is_not_run(tmp_path, one_rank, name, sealed):
    """In place of a file; `sealed`: with checksums that say it belongs there."""
    trained_to(tmp_path / "run", [1])
    folder, marker = tmp_path / "run" / "checkpoints" / "step_00000001", tmp_path / "marker"
    state = (folder / "state.json").read_text()
    (folder / name).write_bytes(pickle.dumps(Planted(marker)))
    (folder / ".metadata").write_bytes(pickle.dumps(Planted(marker)))
    if sealed and name != "checksums.json":
        planted = (folder / name).read_bytes()
        sums = {name: {"bytes": len(planted), "sha256": hashlib.sha256(planted).hexdigest()}}
        kept = json.loads((folder / "checksums.json").read_text())["files"]
        (folder / "checksums.json").write_text(json.dumps({"files": kept | sums}))
        assert damage(folder) is None
        with pytest.raises(CheckpointError, match="cannot read checkpoint") as refusal:
            load_full(folder, ["W"])
        assert "\n" not in str(refusal.value)
    else:
        with pytest.raises(CheckpointError, match=f"no sound checkpoint .step_00000001/{name}"):
            newest(tmp_path / "run")
    assert state and not marker.exists()


def test_names_cannot_leave_the_folder(tmp_path, one_rank):
    trained_to(tmp_path / "run", [1])
    folder = tmp_path / "run" / "checkpoints" / "step_00000001"
    shutil.move(folder / "rows_00001.safetensors", tmp_path / "elsewhere.safetensors")
    sums = json.loads((folder / "checksums.json").read_text())["files"]
    sums["../../../elsewhere.safetensors"] = sums.pop("rows_00001.safetensors")
    (folder / "checksums.json").write_text(json.dumps({"files": sums}))
    assert "names a file outside of its folder, ../../../elsewhere.safetensors" in str(damage(folder))


def test_rows_that_nobody_wrote_are_not_read(tmp_path, one_rank):
    trained_to(tmp_path / "run", [1])
    folder = tmp_path / "run" / "checkpoints" / "step_00000001"
    save_file(load_file(folder / "rows_00001.safetensors"), folder / "rows_00000.safetensors")
    assert damage(folder) == "step_00000001/rows_00000.safetensors does not belong to it"
