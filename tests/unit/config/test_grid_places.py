"""A grid over places: pairs of hook and target, widths and k that go with them, and * for every layer."""

import dataclasses

import pytest
import test_config_rules
from test_config_rules import composed, resolved

from sae_dist.config.grid import captured, members, names_layers, over_layers
from sae_dist.config.resolve import resolved_members
from sae_dist.config.run import load_config, save_config
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError

HOOKS, TARGETS = "grid.hook=[h.0.mlp:in,h.1.mlp:in]", "grid.target_hook=[h.0.mlp,h.1.mlp]"
FACTS = dataclasses.replace(
    test_config_rules.FACTS,
    hook="h.0.mlp:in",
    target_hook="h.0.mlp:out",
    target_width=96,
    more=(("h.1.mlp:in", 64),),
    more_targets=(("h.1.mlp:out", 96, False),),
)


def settled(*overrides):
    return resolved(HOOKS, TARGETS, *overrides, facts=FACTS)


def test_each_pair_is_a_transcoder_with_its_own_width_and_k():
    cfg = settled("grid.hook_num_latents=[128,256]", "grid.hook_k=[4,8]", "grid.seed=[0,1]")
    validate(cfg)
    assert cfg.grid.target_hook == ["h.0.mlp:out", "h.1.mlp:out"] and cfg.grid.size == 4
    assert cfg.name.startswith("gpt2-h.0.mlp_in-to-h.0.mlp-topk-grid-of-4-")
    found = resolved_members(cfg, FACTS, FACTS.width)
    said = [(each.hook, each.target_hook, each.sae.num_latents, each.sae.k, each.sae.seed) for each in found]
    assert said == [
        ("h.0.mlp:in", "h.0.mlp:out", 128, 4, 0),
        ("h.0.mlp:in", "h.0.mlp:out", 128, 4, 1),
        ("h.1.mlp:in", "h.1.mlp:out", 256, 8, 0),
        ("h.1.mlp:in", "h.1.mlp:out", 256, 8, 1),
    ]
    assert found[2].name == "hook=h.1.mlp_in,target_hook=h.1.mlp_out,seed=0"
    assert [each.sae.aux_k for each in found[::2]] == [48, 32], "by the width of each input"


def test_a_resolved_grid_is_read_back_as_it_was(tmp_path):
    cfg = settled("grid.hook_num_latents=[128,256]", "sae.skip=true")
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == cfg
    cfg.grid.hook_num_latents = [128]
    save_config(cfg, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="hook_num_latents has 1 values for the 2 of grid.hook"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (TARGETS, "grid.target_hook has a value for each of grid.hook; give that, too"),
        ("grid.hook_k=[8,16]", "grid.hook_k has a value for each of grid.hook"),
        (f"{HOOKS} grid.target_hook=[h.0.mlp]", "has 1 values for the 2 of grid.hook; give one for each"),
        (f"{HOOKS} {TARGETS} grid.hook_k=[8,16,32]", "grid.hook_k has 3 values for the 2"),
        ("grid.hook=[h.0,h.0] grid.target_hook=[h.1,h.1]", "holds h.0 twice"),
        ("grid.hook=[h.0] grid.target_hook=[h.0]", r"target_hook=h.0 is hook itself.*\(in the grid"),
        (f"{HOOKS} {TARGETS} target_hook=h.2", "target_hook=h.2: give grid.target_hook in its place"),
        (f"{HOOKS} target_hook=h.2", "target_hook=h.2: give grid.target_hook in its place, one target for"),
        (f"{HOOKS} sae.skip=true", "sae.skip=true leads from a transcoder's input"),
        (
            f"{HOOKS} {TARGETS} grid.hook_k=[8,16] sae=relu",
            "grid.hook_k=.8,16. is not read with sae.kind=relu",
        ),
        (f"{HOOKS} grid.k=[1,2] grid.hook_k=[8,16]", "grid.k and grid.hook_k are both given; give one"),
        (f"{HOOKS} {TARGETS} sae.num_latents=64 grid.hook_k=[8,65]", "sae.k=65 is more than sae.num_latents"),
        (f"{HOOKS} grid.hook_num_latents=[64,65] topology.shard=2", r"use 'grid.hook_num_latents=\[64,64\]'"),
        (
            "hook=layers.*.mlp",
            r"hook=layers.\*.mlp names every layer; .* write 'grid.hook=\[layers.\*.mlp\]'",
        ),
    ],
)
def test_lists_that_do_not_fit(overrides, says):
    with pytest.raises(ConfigError, match=says):
        validate(composed(*overrides.split()))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("grid.hook_k=[8,16] sae.k=8", "grid.hook_k=.* and sae.k=8 are both given; give one"),
        ("grid.hook_num_latents=[8,16] sae.expansion=8", "and sae.expansion=8 are both given"),
    ],
)
def test_what_a_list_sets_is_not_given_beside_it(overrides, says):
    with pytest.raises(ConfigError, match=says):
        composed(HOOKS, *overrides.split())


def test_one_hook_may_have_several_targets():
    cfg = composed("grid.hook=[h.0,h.0]", "grid.target_hook=[h.1,h.2]")
    validate(cfg)
    assert captured(cfg) == (("h.0", "h.1"), [("h.0", "h.2")])


def test_a_star_stands_for_every_layer():
    words = ["grid.hook=[layers.*.mlp:in,layers.1]", "grid.target_hook=[layers.*.mlp,layers.3]"]
    cfg = composed(*words, "grid.hook_k=[8,16]")
    assert names_layers(cfg)
    cfg = over_layers(cfg, 3)
    assert not names_layers(cfg)
    assert cfg.grid.hook == [*(f"layers.{n}.mlp:in" for n in range(3)), "layers.1"]
    assert cfg.grid.target_hook == [*(f"layers.{n}.mlp" for n in range(3)), "layers.3"]
    assert cfg.grid.hook_k == [8, 8, 8, 16]
    assert len(members(cfg)) == 4
    own = over_layers(composed(*words, "grid.hook_num_latents=[64,128,256,64]"), 3)
    assert [each.sae.num_latents for each in members(own)] == [64, 128, 256, 64]
    wrong = over_layers(composed(*words, "grid.hook_k=[8,16,32]"), 3)
    with pytest.raises(ConfigError, match="grid.hook_k has 3 values for the 4 of grid.hook"):
        validate(wrong)
