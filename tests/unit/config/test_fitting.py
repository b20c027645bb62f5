"""A run that ran out of memory: what would fit, and the line that says it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sae_dist.config.needs import held_bytes, what_would_fit
from sae_dist.config.resolve import resolve, resolved_members
from sae_dist.config.run import Single, narrowed
from sae_dist.core.place import Place
from sae_dist.launch.compose import compose_config
from sae_dist.train.announce import memory_in_words
from sae_dist.train.out_of_memory import explained, is_out_of_memory

GIB = 2**30


def config(latents: int, device: str = "cuda") -> Single:
    words = [f"sae.num_latents={latents}", "shuffle.block_chunks=2", f"device={device}"]
    made = ["activations=synthetic", "activations.width=1024"]
    return narrowed(Single, resolve(compose_config([*words, *made]), None, 1024))


def rank(cfg: Single, folder: Path, place: Place) -> SimpleNamespace:
    """What an explanation reads of a rank."""
    device = torch.device(cfg.device)
    return SimpleNamespace(cfg=cfg, folder=folder, facts=None, where=place, device=device)


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
    assert 32 * GIB < held_bytes([cfg], 1024, 1024) < 33 * GIB
    assert what_would_fit(cfg, [cfg], 1024, 1024, gib * GIB) == expected


def test_row_adam_is_suggested_to_kinds_that_can():
    room = int(26 * GIB / 0.8)
    cfg = config(2**20)
    assert "optim=row_adam" in what_would_fit(cfg, [cfg], 1024, 1024, room)
    cfg.sae.kind = "relu"
    assert "optim=offload" in what_would_fit(cfg, [cfg], 1024, 1024, room)


def test_nothing_is_suggested_where_nothing_fits():
    cfg = config(2**20)
    assert what_would_fit(cfg, [cfg], 1024, 1024, 2**20) == []


def test_a_grid_is_fitted_as_a_whole():
    """Two dictionaries, whose width no key of the grid gives, halve together."""
    words = ["grid.k=[16,64]", "sae.expansion=1024", "shuffle.block_chunks=2", "device=cpu"]
    made = ["activations=synthetic", "activations.width=1024"]
    cfg = resolve(compose_config([*words, *made]), None, 1024)
    members = resolved_members(cfg, None, 1024)
    assert 64 * GIB < held_bytes(members, 1024, 1024) < 66 * GIB
    assert what_would_fit(cfg, members, 1024, 1024, 42 * GIB) == ["sae.num_latents=524288"]


def test_the_announcement_counts_the_copy_of_a_checkpoint():
    """2^20 latents of width 1024 are 24 GiB with their moments; each of two consumers copies its half."""
    run = SimpleNamespace(cfg=config(2**20), widths=(1024,), topology=SimpleNamespace(num_consumers=2))
    # And on a GPU the buffer through which they are copied.
    for device, copy in (("cpu", "12.01"), ("cuda", "12.26")):
        run.device = torch.device(device)
        assert f"{copy} GiB more on the host while a checkpoint is written" in memory_in_words([run])
    run.cfg.checkpoint.background = False
    assert "more on the host" not in memory_in_words([run])


def test_the_host_s_allocator_is_recognised_and_explained(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("shapes differ"))
    error = explained(caught.value, rank(config(2**26, "cpu"), tmp_path, Place(0, 1, 0, 1)))
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
    line = str(explained(error, rank(config(2**20), tmp_path, Place(3, 4, 3, 4))))
    assert written == [str(tmp_path / "traces" / "memory_rank_3.pickle")]
    assert "of 16.00 GiB; what would fit: " in line and "Tried to allocate" in line
