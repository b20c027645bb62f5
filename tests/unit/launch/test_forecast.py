"""What a run needs, by the same arithmetic that training announces."""

import re

import pytest

from sae_dist import cli
from sae_dist.config.needs import consumer_memory
from sae_dist.config.resolve import resolve, resolved_members
from sae_dist.config.rules.checkpoint import checkpoint_bytes
from sae_dist.core.text import gib
from sae_dist.launch.compose import compose_config
from sae_dist.launch.forecast import forecast
from sae_dist.launch.settle import Settled
from tests.unit.config.test_config_rules import FACTS

WIDE = ["sae.num_latents=1048576", "topology.shard=16", "topology.producers=8", "device=cpu", "kernels=torch"]


def settled(*words) -> Settled:
    cfg = resolve(compose_config(list(words)), FACTS, FACTS.width)
    found = resolved_members(cfg, FACTS, FACTS.width)
    return Settled(
        cfg, FACTS.width, tuple(found) if cfg.is_grid else (), (FACTS.width,) * len(found), None, FACTS
    )


def test_memory_of_each_rank_and_sizes_of_files():
    one = settled(*WIDE)
    held = consumer_memory(one.cfg, FACTS.width, FACTS.width)
    said = forecast(one)
    assert f"each consumer: {gib(held.dictionary + held.rows, 2)} = {gib(held.dictionary, 2)} dict" in said
    assert f"{gib(held.rows, 2)} shuffle buffer + 0.00 GiB language model" in said
    assert "each producer:" in said and "topology.shard x topology.dp = 24 ranks" in said
    assert f"disk: {gib(checkpoint_bytes(one.cfg, FACTS.width), 2)} for a checkpoint, 3 at most" in said
    assert "0.412 TFLOP" in said


def test_a_grid_holds_all_its_dictionaries_and_groups_share_them_out():
    words = ["grid.num_latents=[65536,65536]", "topology.producers=1"]
    alone, shared = (
        float(re.search(r"= ([\d.]+) GiB dictionary", forecast(settled(*words, f"topology.groups={n}")))[1])
        for n in (1, 2)
    )
    assert alone == pytest.approx(2 * shared, rel=0.02)


def test_a_dry_run_writes_nothing_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--dry-run", "debug=tiny", "name=x", "topology.shard=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("outputs/x\n  topology.producers + topology.shard x topology.dp = 2 ranks")
    assert "each consumer:" in out and list(tmp_path.iterdir()) == []
    assert cli.main(["train", "--dry-run", "-m", "sae.k=4,8"]) == 2
    assert "leave -m out" in capsys.readouterr().err
