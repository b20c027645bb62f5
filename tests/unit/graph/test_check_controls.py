"""Controls of a check: equal latents, other prompts, other dictionaries, and graphs that mean nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.graph.check.check import check
from sae_dist.graph.check.chosen import controls, firing, random_directions
from sae_dist.graph.check.seeds import nearest
from sae_dist.graph.check.trials import Trials
from sae_dist.graph.check.variants import given, made
from sae_dist.graph.sites import sites_of
from sae_dist.graph.trace import trace
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import as_model
from tests.helpers.dictionaries import random_sae
from tests.helpers.planted_circuit import PROMPT, planted_circuit

TARGETS = ["Paris", "Rome"]


@pytest.fixture(scope="module")
def circuit():
    d, lm = planted_circuit()
    return d, lm, trace(d, lm, PROMPT, targets=TARGETS, node_threshold=1.0)


@pytest.fixture(scope="module")
def trials(circuit):
    d, lm, graph = circuit
    return Trials(sites_of(d, lm), lm, torch.tensor(graph.ids), [6, 7])


def test_controls_are_of_equal_size_and_have_little_effect(trials):
    own = firing(trials, [(0, 0, 0), (0, 3, 1)])
    found = controls(trials, own, {(0, 0, 0): 3.0, (0, 3, 1): -1.0, (0, 0, 4): 1.0}, seed=0)
    assert None not in found and len({each.key for each in found}) == 2
    assert not {each.key for each in found} & {each.key for each in own}
    assert all(each.code > 0 and each.layer == 0 for each in found)
    assert all(each.position == one.position for each, one in zip(found, own, strict=True))
    assert all(0.2 < each.size / one.size < 5 for each, one in zip(found, own, strict=True))


def test_what_is_cut_is_no_control(trials):
    own = firing(trials, [(0, 0, 0), (0, 0, 4), (0, 3, 1)])
    keys = {each.key for each in own}
    for seed in range(8):  # nothing has an effect, so that each would be the most alike to itself
        assert not keys & {each.key for each in controls(trials, own, {}, seed) if each is not None}


def test_no_control_is_left_where_nothing_else_fires(trials):
    keys = [(0, int(row), int(latent)) for row, latent in zip(*_pairs(trials, 0), strict=True)]
    assert controls(trials, firing(trials, keys), {}, seed=0) == [None] * len(keys)


def _pairs(trials, layer):
    codes = trials.at(layer)[1]
    return codes.rows.tolist(), codes.latents.tolist()


def test_random_directions_have_the_size_of_what_is_cut(trials):
    own = firing(trials, [(0, 0, 0), (1, 4, 0)])
    for each, change in zip(own, random_directions(own, 0), strict=True):
        assert float(change.delta_E.norm()) == pytest.approx(each.size, rel=1e-5)
        assert (change.layer, change.position) == (each.layer, each.position)


def test_a_silent_latent_has_no_code(trials):
    assert firing(trials, [(0, 1, 0)])[0].code == 0.0


def test_what_is_put_before_a_prompt_leaves_it_as_it_is(circuit):
    lm = circuit[1]
    ids = lm.ids(PROMPT).tolist()
    found = made(lm, ids)
    assert found and all(list(each.ids[-len(ids) :]) == ids and len(each.ids) > len(ids) for each in found)
    assert len({each.ids for each in found}) == len(found)


def test_special_tokens_stay_first(circuit):
    lm = replace(circuit[1], special_ids=frozenset({8}), tokenizer=None)
    assert [each.ids for each in made(lm, [8, 1, 2])] == [(8, 1, 1, 2), (8, 2, 1, 2)]


def test_a_prompt_as_long_as_the_model_reads_has_no_variants(circuit):
    lm = circuit[1]
    assert made(lm, [1] * 32) == []
    with pytest.raises(ConfigError, match="reads 1 to 32"):
        given(lm, ["the " * 40], "--paraphrases")


def test_paraphrases_are_compared(circuit):
    d, lm, graph = circuit
    found = check(graph, d, lm, paraphrases=["Colosseum beside the Eiffel in", "London beside the London of"])
    same, other = found.numbers["variants"]
    assert same["same_next_token"] and same["fire"] == same["latents"] and same["rank"] > 0.9
    assert not other["same_next_token"] and other["fire"] == 0


def test_the_same_dictionaries_in_another_order_are_found_again(random_one):
    d, lm = random_one
    graph = trace(d, lm, list(range(20, 29)))
    order = torch.randperm(d[0].num_latents, generator=torch.Generator().manual_seed(0))
    others = [Dictionary(each.sae.tile(order), each.place) for each in d]
    found = check(graph, d, lm, other=others, other_name="again").numbers["other_set"]
    assert (found["found"], found["fire"]) == (found["latents"], found["latents"])
    assert found["slope"] == pytest.approx(1, abs=1e-4) and found["share_of_influence"] == pytest.approx(1)
    strangers = [_random(each, n) for n, each in enumerate(d)]
    found = check(graph, d, lm, other=strangers, other_name="strangers").numbers["other_set"]
    assert found["fire"] == 0 and found["share_of_influence"] == 0


def test_a_set_for_other_places_is_refused(circuit):
    d, lm, graph = circuit
    with pytest.raises(ConfigError, match="--other half has no transcoder from"):
        check(graph, d, lm, other=d[:1], other_name="half")


def _random(like: Dictionary, seed: int) -> Dictionary:
    draw = torch.Generator().manual_seed(seed)
    sae = replace(like.sae, W_dec_FE=torch.randn(like.W_dec.shape, generator=draw))
    return Dictionary(sae, like.place)


def test_nearest_rows_are_those_of_one_product(circuit):
    d = circuit[0][0]
    rows = torch.randn(5, d.W_dec.shape[1], generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize
    best = (unit(rows, dim=1) @ unit(d.W_dec, dim=1).T).max(1)
    value, latent = nearest(d, rows)
    assert torch.allclose(value, best.values) and torch.equal(latent, best.indices)


@pytest.fixture(scope="module")
def random_one():
    """A random model of four layers with random transcoders of several kinds."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    lm = as_model(LlamaForCausalLM(config).eval().requires_grad_(False))
    found = []
    for layer, (kind, form) in enumerate(
        (("topk", "transcoder"), ("jumprelu", "skip"), ("gated", "transcoder"), ("relu", "skip"))
    ):
        sae = random_sae(kind, form, F=128, D=32, out=32, k=8)
        said = {"hook_name": f"layers.{layer}.mlp:in", "hook_name_out": f"layers.{layer}.mlp:out"}
        found.append(Dictionary(sae, replace(planted_circuit()[0][0].place, said=said)))
    return found, lm


def test_random_dictionaries_explain_little(random_one):
    d, lm = random_one
    ids = torch.randint(0, 200, (9,), generator=torch.Generator().manual_seed(1))
    graph = trace(d, lm, ids)
    found = check(graph, d, lm)
    assert found.level == "little", str(found)


def test_a_shuffled_graph_explains_little(random_one, circuit):
    levels = []
    for d, lm, graph in (circuit, (*random_one, trace(*random_one, list(range(20, 29))))):
        for seed in range(3):
            draw = np.random.default_rng(seed)
            latents = [n for n, node in enumerate(graph.nodes) if node.kind == "latent"]
            total = graph.total.clone()
            total[latents] = total[draw.permutation(latents)]
            shuffled = replace(
                graph, total=total, weights=graph.weights[draw.permutation(len(graph.weights))]
            )
            levels.append(check(shuffled, d, lm, paths=0, paraphrases=[]).level)
    assert "explains" not in levels
