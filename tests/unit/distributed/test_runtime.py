"""A GPU for each process, and the groups that a topology makes."""

import os
import threading
import time
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sae_dist.config.sections import TopologyConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.place import Place
from sae_dist.distributed import runtime
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.distributed.runtime import ALLOCATOR, gpu_of
from tests.helpers.fake_device import HOST
from tests.helpers.ranks import close_worlds, run_ranks


def test_each_process_has_a_gpu_of_its_own():
    assert [gpu_of(Place(rank, 4, rank, 4), 4) for rank in range(4)] == [0, 1, 2, 3]
    # A task of a Slurm step that sees its own GPU alone.
    assert gpu_of(Place(3, 4, 3, 4), 1) == 0 and gpu_of(Place(0, 1, 0, 1), 0) == 0


def test_processes_that_would_share_a_gpu_are_refused():
    with pytest.raises(
        ConfigError, match="4 processes on this machine need a GPU each, and there are 2; start"
    ):
        gpu_of(Place(0, 4, 0, 4), 2)


@pytest.mark.parametrize("given", [None, *ALLOCATOR])
def test_the_allocator_is_told_of_sizes_that_differ(monkeypatch, given):
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv(given, "garbage_collection_threshold:0.8")
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    runtime.start(Place(0, 1, 0, 1), "cpu", 1.0)
    assert (ALLOCATOR[0] in os.environ) == (given == ALLOCATOR[0])
    runtime.start(Place(0, 1, 0, 1), "cuda", 1.0)
    expected = "expandable_segments:True" if given is None else "garbage_collection_threshold:0.8"
    assert os.environ[given or ALLOCATOR[0]] == expected
    assert sum(name in os.environ for name in ALLOCATOR) == 1


def groups(shard, dp, producers):
    """Which axes of this rank share the consumers' group."""
    rank = dist.get_rank()
    topology = Topology(
        TopologyConfig(shard=shard, dp=dp, producers=producers), Place(rank, 3, rank, 3), "cpu"
    )
    topology.meet(HOST)
    if not topology.is_consumer:
        return None
    axes = [topology.consumers, topology.shard, topology.dp]
    assert float(topology.shard.sum(torch.ones(1))) == shard and float(topology.dp.sum(torch.ones(1))) == dp
    return [axis.group is topology.consumers.group for axis in axes]


@pytest.mark.parametrize("shard,dp,shared", [(2, 1, [True, True, False]), (1, 2, [True, False, True])])
def test_axes_of_the_same_ranks_share_a_group(shard, dp, shared):
    """With NCCL each group has buffers of its own on the device. All pairs meet, in one order."""
    found = run_ranks(groups, 3, shard, dp, 1)
    assert found == [shared, shared, None]


@pytest.mark.parametrize("check", ["train", "harvest"])
def test_a_launcher_that_starts_too_many_is_told_before_anything_is_written(monkeypatch, check):
    from sae_dist.launch import harvest, settle

    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    cfg = SimpleNamespace(device="cuda")

    def checked():
        return settle.check_devices(cfg, 4) if check == "train" else harvest._check_devices(cfg, 4, 4)

    for found in (4, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda found=found: found)
        checked()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ConfigError, match="4 processes on this machine need a GPU each, and there are 3"):
        checked()


def asked_meanwhile():
    """Seconds that an answer of the store takes while torch waits for a key of its own."""
    default = dist.distributed_c10d._get_default_store()

    def wait():
        with suppress(RuntimeError):
            default.wait(["of a communicator"], timedelta(seconds=3))

    waiting = threading.Thread(target=wait)
    waiting.start()
    control = Control(10.0, "meanwhile")
    time.sleep(0.2)
    began = time.monotonic()
    control.set("beat", "1")
    found = control.get("beat")
    seconds = time.monotonic() - began
    assert waiting.is_alive(), "torch still waits"
    waiting.join()
    return found, seconds


def test_control_does_not_wait_for_torchs_own_questions():
    """As while NCCL makes a communicator, whose other side is late."""
    ((found, seconds), _) = run_ranks(asked_meanwhile, 2, timeout_s=30)
    assert found == "1" and seconds < 2


def still_asking():
    """Threads that may be in a call of the store's after the group is left."""
    Control(10.0, "a").start_beating(0)
    Control(10.0, "b").set("key", "1")
    runtime.finish()
    return [each.name for each in threading.enumerate() if each.name in ("store", "beat")]


def test_no_thread_asks_the_store_while_the_process_ends():
    """One that does is taken away within C++, which aborts the process, after all its work was done."""
    close_worlds()
    assert run_ranks(still_asking, 1) == [[]]
    close_worlds()
