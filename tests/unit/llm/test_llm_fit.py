"""What fits where, from facts alone; the sharding that is named fits."""

import pytest
import torch

from sae_dist.config.resolve import resolve
from sae_dist.core.errors import ConfigError
from sae_dist.evaluation import summary as analysis
from sae_dist.launch.compose import compose_config
from sae_dist.llm import fit
from sae_dist.llm.facts import llm_facts

MIB = 2**20


@pytest.fixture(scope="module")
def facts():
    cfg = compose_config([])
    return llm_facts(cfg.llm, "layers.2")[0]


def check(facts, memory, monkeypatch, *overrides, device="cpu"):
    monkeypatch.setattr(fit, "memory_bytes", lambda _: memory)
    cfg = resolve(compose_config([*overrides, "llm.dtype=float32"]), facts, facts.width)
    cfg.device = device
    fit.check_memory(cfg, facts, None)


def test_facts_count_parameters(facts):
    layer = 4 * 256 * 256 + 3 * 256 * 704 + 2 * 256
    assert facts.parameters == 2048 * 256 + 3 * layer + 256
    assert facts.whole_parameters == facts.parameters + layer
    assert facts.tp_sizes == (2, 4)


def test_a_gpu_too_small_is_told_what_fits(facts, monkeypatch):
    split = ["topology.producers=1", "llm.shard_size=2"]
    with pytest.raises(ConfigError, match="llm.shard=zero3 llm.shard_size=2 .* or llm.shard=tp"):
        check(facts, 8 * MIB, monkeypatch, device="cuda")
    check(facts, 8 * MIB, monkeypatch, *split, "llm.shard=zero3", device="cuda")
    with pytest.raises(ConfigError, match="llm.shard_size=7 topology.producers=1"):
        check(facts, 2 * MIB, monkeypatch, *split, "llm.shard=zero3", device="cuda")
    check(facts, 2 * MIB, monkeypatch, *split, "llm.shard=zero3", "llm.offload=true", device="cuda")
    check(facts, 16 * MIB, monkeypatch, device="cuda")


def test_a_machine_holds_as_many_copies_as_ranks(facts, monkeypatch):
    check(facts, 16 * MIB, monkeypatch)
    with pytest.raises(ConfigError, match="2 x 0.0 GiB .* hold it once: llm.shard=zero3 llm.shard_size=2"):
        check(facts, 16 * MIB, monkeypatch, "topology.shard=2")
    check(facts, 16 * MIB, monkeypatch, "topology.producers=1", "llm.shard=zero3", "llm.shard_size=2")


def test_evaluation_of_a_model_that_one_process_cannot_hold_is_skipped(facts, monkeypatch, capsys):
    overrides = ["llm.shard=zero3", "llm.shard_size=2", "topology.producers=1", "hook=layers.2"]
    cfg = resolve(compose_config(overrides), facts, facts.width)
    monkeypatch.setattr("sae_dist.llm.whole.memory_bytes", lambda _: 2 * MIB)
    (found,) = analysis._measure(cfg, [None], torch.device("cpu"), None)
    assert found["ce_recovered"] is None and "in one process" in found["ce_reason"]
    assert capsys.readouterr().err.startswith("not evaluated: evaluation holds the model up to its hook")
