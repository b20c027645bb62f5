"""Lanes that fit the topology by themselves, and one line that mends everything that does not fit."""

import copy
import re
import shlex

import pytest

from sae_dist.config.resolve import resolve, resolved_members
from sae_dist.config.rules.sharing import DEFAULT_LANES, default_lanes, sharing_problems
from sae_dist.config.run import parse_counts
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError
from sae_dist.launch.compose import compose_config
from tests.unit.config.test_config_rules import FACTS, composed

RANKS = range(1, 65)


def resolved(*overrides):
    words = ["device=cpu", "kernels=torch", *overrides]
    return resolve(compose_config(words), FACTS, FACTS.width)


def with_topology(cfg, shard=1, producers=0, dp=1):
    found = copy.deepcopy(cfg)
    found.topology.shard, found.topology.producers, found.topology.dp = shard, producers, dp
    return found


def test_topologies_that_could_share_48_lanes_still_have_48():
    cfg = composed()
    for shard in (n for n in RANKS if DEFAULT_LANES % n == 0):
        assert {default_lanes(with_topology(cfg, shard, p)) for p in (0, 1, 7, 48)} == {DEFAULT_LANES}


@pytest.mark.parametrize(
    ("shard", "producers", "lanes"),
    [(5, 0, 50), (32, 0, 96), (64, 0, 192), (32, 32, 96), (1, 49, 96), (7, 100, 147)],
)
def test_lanes_of_other_topologies(shard, producers, lanes):
    assert default_lanes(with_topology(composed(), shard, producers)) == lanes


def test_every_topology_has_lanes_that_it_can_share():
    cfg = composed()
    for shard in RANKS:
        for producers in (0, 1, shard, 64):
            for dp in (1, 2):
                lanes = default_lanes(with_topology(cfg, shard, producers, dp))
                assert lanes % (shard * dp) == 0 and lanes >= max(producers, 1)


def test_ranks_of_a_zero3_group_have_a_lane_each():
    cfg = composed("llm.shard=zero3", "llm.shard_size=8", "topology.producers=8")
    assert default_lanes(cfg) == 96


def test_the_names_of_runs_stay_whatever_the_topology_and_the_lanes():
    names = {resolved("sae.num_latents=4096", f"topology.shard={n}").name for n in (1, 8, 32, 64)}
    assert len(names) == 1
    assert resolved().name == resolved("shuffle.lanes=48").name
    assert len({resolved(*each).name for each in ([], ["train_tokens=200k"], ["shuffle.lanes=96"])}) == 3
    assert resolved("topology.shard=64", "shuffle.lanes=48").shuffle.lanes == 48


def mended(cfg, said):
    """A config with the overrides that a message says to use."""
    found = copy.deepcopy(cfg)
    line = re.split(r" in place of|, or ", said.partition("; use ")[2])[0]
    for word in shlex.split(line):
        key, _, value = word.partition("=")
        section, _, name = key.rpartition(".")
        values = [int(each) for each in value.strip("[]").split(",")]
        setattr(getattr(found, section) if section else found, name, values if value[0] == "[" else values[0])
    return found


CASES = {
    "default": [],
    "expansion": ["sae.expansion=5"],
    "wide": ["sae.num_latents=1048576"],
    "few": ["sae.num_latents=100", "sae.k=90", "sae.aux_k=50"],
    "lanes": ["shuffle.lanes=48", "sae.num_latents=1000"],
    "grid": ["grid.num_latents=[4096,4100,8192]", "grid.k=[16,32]"],
    "short": ["train_tokens=2048"],
    "replicas": ["topology.dp=3"],
}


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_the_line_in_a_refusal_works_on_any_number_of_ranks(words):
    cfg, refused = resolved(*words), 0
    for shard in RANKS:
        cfg.topology.shard = shard
        if problem := next(sharing_problems(cfg), None):
            refused += 1
            assert "not divisible by" in problem
            assert not list(sharing_problems(mended(cfg, problem)))
            if refused % 8 == 0:
                validate(mended(cfg, problem))
    assert refused >= 8


def test_everything_that_does_not_fit_is_in_one_line():
    cfg = composed("sae.num_latents=1048576", "topology.producers=8", "topology.shard=24", "shuffle.lanes=64")
    with pytest.raises(ConfigError) as found:
        validate(cfg)
    assert str(found.value) == (
        "shuffle.lanes=64, batch=2048 and sae.num_latents=1048576 are not divisible by topology.shard=24; "
        "use shuffle.lanes=72 batch=2040 sae.num_latents=1048584, or topology.shard=16"
    )


def test_open_latents_are_in_the_line_once_the_width_is_known():
    validate(composed("topology.shard=7"), again=True)
    with pytest.raises(ConfigError, match="=1536 are .* use batch=2044 sae.num_latents=1533"):
        validate(resolved("topology.shard=7"), again=True)
    lists = resolved("topology.shard=7", "grid.k=[4,8]")
    validate(lists, again=True)
    with pytest.raises(ConfigError, match="use batch=2044 sae.num_latents=1533"):
        validate(resolved_members(lists, FACTS, FACTS.width)[0])


def test_a_run_that_continues_may_have_other_ranks_only():
    cfg = resolved("shuffle.lanes=50", "sae.num_latents=1000", "batch=2000", "topology.shard=3")
    with pytest.raises(ConfigError) as found:
        validate(cfg, begun=True)
    assert "topology.shard=3, and the run was begun with that; shard x dp can be 1, 2, 5, 10, 25, 50" in str(
        found.value
    )


def test_lanes_of_a_cache_are_fixed():
    cfg = composed("sae.num_latents=4096", "topology.shard=32", "shuffle.lanes=48", "activations=cache")
    cfg.activations.path = "outputs/cache"
    with pytest.raises(ConfigError, match="can be 1, 2, .*, 24, 48, or harvest one with shuffle.lanes=96"):
        validate(cfg)


def test_latents_by_expansion_are_replaced():
    cfg = resolved("sae.expansion=4", "topology.shard=7", "batch=700")
    with pytest.raises(ConfigError, match="use sae.num_latents=385 in place of sae.expansion=4, or"):
        validate(cfg, expansion=4)


def test_a_folder_keeps_its_lanes_on_another_topology(tmp_path):
    from sae_dist.config.run import save_config
    from sae_dist.launch.length import as_begun

    frozen = resolved("name=run", "topology.shard=32", f"output={tmp_path}", "train_tokens=200k")
    (tmp_path / "run").mkdir()
    save_config(frozen, tmp_path / "run" / "config.yaml")
    words = ["name=run", f"output={tmp_path}", "topology.shard=8", "train_tokens=2M"]
    begun = as_begun(parse_counts(compose_config(words)), "config.yaml")
    assert (begun.shuffle.lanes, begun.train_tokens, begun.eval.tokens) == (96, 200_000, 50_000)
    begun = as_begun(parse_counts(compose_config([*words, "shuffle.lanes=48"])), "config.yaml")
    assert begun.shuffle.lanes == 48
