"""A run that ran out of memory: what would fit, and the line that says it."""

from types import SimpleNamespace

import pytest
import torch

from sae_dist.config.needs import held_bytes, what_would_fit
from sae_dist.config.run import RunConfig
from sae_dist.config.sections import OptimConfig, SaeConfig
from sae_dist.core.place import Place
from sae_dist.train.out_of_memory import explained, is_out_of_memory
from sae_dist.train.rank import memory_in_words

GIB = 2**30


def config(latents: int, **sae) -> RunConfig:
    cfg = RunConfig(device="cuda", sae=SaeConfig(kind="topk", num_latents=latents, **sae))
    cfg.optim = OptimConfig(kind="adam")
    cfg.shuffle.block_chunks, cfg.activations.kind, cfg.activations.width = 2, "synthetic", 1024
    return cfg


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (24, ["topology.shard=2", "optim=offload", "sae.num_latents=524288"]),
        (12, ["topology.shard=4", "sae.num_latents=262144"]),
    ],
)
def test_the_least_change_of_each_kind_that_fits(gib, expected):
    """2^20 latents of width 1024 are 8 GiB of weights, as much of gradients, twice as much of moments."""
    cfg = config(2**20)
    assert 32 * GIB < held_bytes(cfg, 1024, 1024) < 33 * GIB
    assert what_would_fit(cfg, 1024, 1024, gib * GIB) == expected


def test_row_adam_is_suggested_to_kinds_that_can():
    room = int(26 * GIB / 0.8)
    assert "optim=row_adam" in what_would_fit(config(2**20), 1024, 1024, room)
    cfg = config(2**20)
    cfg.sae.kind = "relu"
    assert "optim=offload" in what_would_fit(cfg, 1024, 1024, room)


def test_nothing_is_suggested_where_nothing_fits():
    assert what_would_fit(config(2**20), 1024, 1024, 2**20) == []


def test_the_announcement_counts_the_copy_of_a_checkpoint():
    """2^20 latents of width 1024 are 24 GiB with their moments; each of two consumers copies its half."""
    run = SimpleNamespace(cfg=config(2**20), widths=(1024,), topology=SimpleNamespace(num_consumers=2))
    assert "12.01 GiB more on the host while a checkpoint is written" in memory_in_words([run])
    run.cfg.checkpoint.background = False
    assert "more on the host" not in memory_in_words([run])


def test_the_host_s_allocator_is_recognised_and_explained(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("shapes differ"))
    cfg = config(2**26)
    cfg.device = "cpu"
    error = explained(caught.value, cfg, None, tmp_path, Place(0, 1, 0, 1), torch.device("cpu"))
    line = str(error)
    assert error.exit_code == 1 and "\n" not in line
    assert line.startswith("out of memory: this rank holds 2,0")
    assert "what would fit: sae.num_latents=" in line
    assert "topology.shard" not in line and "DefaultCPUAllocator" in line


def test_a_gpu_s_memory_is_written_down_first(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", written.append)
    monkeypatch.setattr("sae_dist.train.out_of_memory.memory_bytes", lambda device: 16 * GIB)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB")
    place = Place(3, 4, 3, 4)
    line = str(explained(error, config(2**20), None, tmp_path, place, torch.device("cuda")))
    assert written == [str(tmp_path / "traces" / "memory_rank_3.pickle")]
    assert "of 16.00 GiB; what would fit: " in line and "Tried to allocate" in line
