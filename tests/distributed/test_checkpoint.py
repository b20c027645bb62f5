"""Checkpoints: resharding, atomicity, retention, a full disk."""

import json
import pickle
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from sae_dist.checkpoint.layout import label, share_out
from sae_dist.checkpoint.read import complete, load_full, newest
from sae_dist.checkpoint.storage import checksum, seal
from sae_dist.checkpoint.store import Checkpoints
from sae_dist.config.sections import TopologyConfig
from sae_dist.core.errors import CheckpointError
from sae_dist.core.place import Place
from sae_dist.distributed.mesh import Topology
from sae_dist.distributed.runtime import finish, start
from sae_dist.train import start as training
from tests.helpers.ranks import run_ranks

ROWS = 24


def topology(shard: int, dp: int) -> Topology:
    rank, world = dist.get_rank(), dist.get_world_size()
    return Topology(TopologyConfig(shard=shard, dp=dp), Place(rank, world, rank, world), "cpu")


def row_ids(topo: Topology) -> torch.Tensor:
    """This rank's rows of a [ROWS, 3] tensor whose rows hold their own number."""
    part = ROWS // topo.shard.size
    first = topo.shard.rank * part
    return torch.arange(first, first + part, dtype=torch.float32)[:, None].repeat(1, 3)


def own_rows(topo: Topology) -> torch.Tensor:
    """Those of `row_ids` that this replica owns."""
    rows = row_ids(topo)
    return rows.view(topo.dp.size, -1, 3)[topo.dp.rank].clone()


def save(folder: Path, shard: int, dp: int, steps: list[int], keep: int = 2) -> None:
    topo = topology(shard, dp)
    for step in steps:
        tensors = {
            "W": (torch.nn.Parameter(row_ids(topo)), "sharded"),
            "count": (row_ids(topo)[:, 0].long(), "sharded"),
            "moment": (own_rows(topo), "owned"),
            "b": (torch.full((5,), step + 0.5), "replicated"),
        }
        Checkpoints(folder, topo, keep).save(step, tensors, {"step": step, "lanes": {"0": {"doc": 7}}})


def load(folder: Path, layouts: list[tuple[int, int]]) -> list[bool]:
    return [load_as(folder, topology(shard, dp)) for shard, dp in layouts]


def load_as(folder: Path, topo: Topology) -> bool:
    shard = topo.shard.size
    W = torch.nn.Parameter(torch.zeros(ROWS // shard, 3))
    count, b = torch.zeros(ROWS // shard, dtype=torch.int64), torch.zeros(5)
    path = newest(folder)
    assert path is not None
    moment = torch.zeros(ROWS // shard // topo.dp.size, 3)
    tensors = {"W": (W, "sharded"), "count": (count, "sharded"), "b": (b, "replicated")}
    tensors["moment"] = (moment, "owned")
    scalars = Checkpoints(folder, topo, 1).load(path, tensors)
    assert scalars == {"step": 3, "lanes": {"0": {"doc": 7}}}
    assert torch.equal(b, torch.full((5,), 3.5))
    assert torch.equal(count, row_ids(topo)[:, 0].long())
    assert torch.equal(moment, own_rows(topo))
    return torch.equal(W, row_ids(topo))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Steps 1, 2, 3 saved at shard 2, dp 2, the newest two kept."""
    folder = tmp_path_factory.mktemp("run")
    run_ranks(save, 4, folder, 2, 2, [1, 2, 3])
    return folder


@pytest.fixture
def one_rank():
    start(Place(0, 1, 0, 1), "cpu", 60.0)
    yield
    finish()


def test_rows_saved_at_2x2_load_in_place_at_4x1_and_2x2(saved):
    assert run_ranks(load, 4, saved, [(4, 1), (2, 2)]) == [[True, True]] * 4


def test_rows_saved_at_2x2_load_in_place_at_1x2(saved):
    assert run_ranks(load, 2, saved, [(1, 2)]) == [[True]] * 2


def test_rows_saved_at_2x2_load_in_place_at_1x1(saved, one_rank):
    assert load(saved, [(1, 1)]) == [True]


def _save_by_dcp(folder: Path) -> None:
    """As checkpoints were written before: by DCP's own save, whose ranks agree by pickles."""
    topo = topology(2, 2)
    b = torch.full((5,), 3.5)
    tensors = {"W": (row_ids(topo), "sharded"), "moment": (own_rows(topo), "owned"), "b": (b, "replicated")}
    tensors["count"] = (row_ids(topo)[:, 0].long(), "sharded")
    path = folder / "checkpoints" / "step_00000003"
    writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist.distributed_c10d, "_unpickler", pickle._Unpickler)
        dcp.save(label(tensors, topo.mesh), storage_writer=writer, process_group=topo.checkpoint_group)
    if topo.leads:
        files = {each.name: checksum(each) for each in path.glob("*.safetensors")}
        seal(path, json.dumps({"step": 3, "lanes": {"0": {"doc": 7}}}), files)
    dist.barrier()


def _load_by_dcp(folder: Path) -> bool:
    topo = topology(4, 1)
    W = torch.zeros(ROWS // 4, 3)
    path = folder / "checkpoints" / "step_00000003"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist.distributed_c10d, "_unpickler", pickle._Unpickler)
        reader, group = dcp.HuggingFaceStorageReader(str(path)), topo.checkpoint_group
        dcp.load(label({"W": (W, "sharded")}, topo.mesh), storage_reader=reader, process_group=group)
    return torch.equal(W, row_ids(topo))


def test_the_layout_is_that_of_dcp_both_ways(saved, tmp_path, one_rank):
    run_ranks(_save_by_dcp, 4, tmp_path)
    assert load(tmp_path, [(1, 1)]) == [True]
    assert run_ranks(load, 4, tmp_path, [(4, 1)]) == [[True]] * 4
    assert run_ranks(_load_by_dcp, 4, saved) == [True] * 4


@pytest.mark.parametrize("shards,replicas", [(1, 1), (4, 1), (1, 4), (2, 3)])
def test_every_row_is_written_once_and_by_the_rank_that_has_least_to_write(shards, replicas):
    tensors = {f"W_{n}": (torch.zeros(6, 2 + n), "sharded") for n in range(12)}
    tensors |= {"m": (torch.zeros(4, 5), "owned"), "b": (torch.zeros(7), "replicated")}
    tensors["step"] = (torch.tensor(3.0), "replicated")
    shared = share_out(tensors, shards, replicas)
    assert len(shared) == shards * replicas
    for name, parts in {"W_3": shards, "m": shards * replicas, "b": 1}.items():
        places = [places[name] for places in shared.values() if name in places]
        tensor = tensors[name][0]
        expected = [[n * len(tensor), *[0] * (tensor.dim() - 1)] for n in range(parts)]
        assert sorted(places) == expected
    assert [each["step"] for each in shared.values() if "step" in each] == [[]]
    loads = [sum(tensors[name][0].nbytes for name in places) for places in shared.values()]
    assert max(loads) - min(loads) <= max(tensor.nbytes for tensor, _ in tensors.values())


def test_the_newest_are_kept_and_nothing_else_is_left(saved):
    names = sorted(path.name for path in (saved / "checkpoints").iterdir())
    assert names == ["latest", "step_00000002", "step_00000003"]
    assert (saved / "checkpoints" / "latest").read_text() == "step_00000003\n"


def test_one_process_reads_whole_tensors_without_a_process_group(saved):
    tensors, scalars = load_full(saved / "checkpoints" / "step_00000003", ["W", "b"])
    assert torch.equal(tensors["W"][:, 0], torch.arange(ROWS, dtype=torch.float32))
    assert tensors["b"].tolist() == [3.5] * 5 and scalars["step"] == 3
    with pytest.raises(CheckpointError, match="has no tensor W_gate; it has W, b, count, moment"):
        load_full(saved / "checkpoints" / "step_00000003", ["W_gate"])


def test_another_shape_is_refused_by_name(saved, one_rank):
    store = Checkpoints(saved, topology(1, 1), 1)
    with pytest.raises(CheckpointError, match=r"W has shape \[24, 3\], this run needs \[24, 4\]$"):
        store.load(saved / "checkpoints" / "step_00000003", {"W": (torch.zeros(ROWS, 4), "sharded")})


def test_incomplete_folders_do_not_count_and_are_removed_by_the_next_save(saved, tmp_path, one_rank):
    shutil.copytree(saved, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / ".step_9.tmp").mkdir()
    shutil.rmtree(folder / "step_00000003")
    assert newest(tmp_path / "run") == folder / "step_00000002"
    assert newest(tmp_path / "none") is None
    save(tmp_path / "run", 1, 1, [4], keep=1)
    assert [p.name for p in complete(folder)] == ["step_00000004"] and not (folder / ".step_9.tmp").exists()


def _save_with_no_room(folder: Path, limit_bytes: int) -> str:
    """The second rank's files may not grow beyond `limit_bytes`: its write fails, as on a full disk."""
    topo = topology(2, 1)
    store = Checkpoints(folder, topo, 2)
    store.save(1, {"W": (row_ids(topo), "sharded")}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if topo.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(CheckpointError) as failure:
            store.save(2, {"W": (torch.ones(1 << 18), "sharded")}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return str(failure.value)


def test_a_write_that_fails_on_one_rank_is_one_line_on_all_and_keeps_the_older(tmp_path):
    messages = run_ranks(_save_with_no_room, 2, tmp_path, 4096)
    for message in messages:
        assert (
            f"cannot write a checkpoint in {tmp_path}/checkpoints: rank 1" in message
            and "MiB free" in message
        )
        assert "older checkpoints are intact" in message and "\n" not in message
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step_00000001"


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path, one_rank):
    store = Checkpoints(tmp_path, topology(1, 1), 2)
    # Zero strides: a tensor far larger than any disk that takes no memory.
    with pytest.raises(CheckpointError, match="No space left on device .* 4,294,967,312 MiB needed"):
        store.save(1, {"W": (torch.zeros(1).expand(1 << 50), "sharded")}, {})
    assert list((tmp_path / "checkpoints").iterdir()) == []


def trained_to(folder: Path, steps: list[int]) -> SimpleNamespace:
    """A dictionary of a grid with checkpoints of these steps, whose one tensor holds the step."""
    topo = topology(1, 1)
    run = SimpleNamespace(
        folder=folder,
        cfg=SimpleNamespace(resume="auto"),
        checkpoints=Checkpoints(folder, topo, len(steps)),
        W=torch.zeros(3),
        optimizer=SimpleNamespace(updates=0),
        agreement=Mock(),
        topology=topo,
        shuffle=Mock(),
        meter=Mock(),
    )
    run.tensors = lambda: {"W": (run.W, "replicated")}
    rest = {"any_dead": False, "pending": None, "wandb_id": "id", "scales": [1.0], "spent": {}}
    for step in steps:
        scalars = {"step": step, "tokens": 10 * step, "updates": step, "lanes": {"0": step}}
        run.checkpoints.save(step, {"W": (torch.full((3,), float(step)), "replicated")}, scalars | rest)
    return run


def test_a_grid_goes_on_at_the_newest_step_that_all_have_and_forgets_later_ones(tmp_path, one_rank):
    runs = [trained_to(tmp_path / str(n), steps) for n, steps in enumerate([[1, 2, 4], [2, 4, 5], [1, 2]])]
    training.start(runs)
    for run in runs:
        assert run.progress.step == run.optimizer.updates == 2 and run.W.tolist() == [2.0] * 3
        run.shuffle.restore.assert_called_once_with({"0": 2})
        assert complete(run.folder / "checkpoints")[-1].name == "step_00000002"
        assert (run.folder / "checkpoints" / "latest").read_text() == "step_00000002\n"


def test_dictionaries_without_a_common_step_are_named_and_keep_what_they_have(tmp_path, one_rank):
    runs = [trained_to(tmp_path / str(n), steps) for n, steps in enumerate([[4], [3, 5], []])]
    with pytest.raises(
        CheckpointError, match="0: step_00000004, 1: step_00000005, 2: none.* topology.groups"
    ):
        training.start(runs)
    assert [len(complete(run.folder / "checkpoints")) for run in runs] == [1, 2, 0]
