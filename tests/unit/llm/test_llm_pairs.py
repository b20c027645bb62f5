"""Pairs of hook and target in one forward: columns in order, one forward, outliers of the inputs alone."""

import pytest
import torch

from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import open_tokens
from tests.helpers.tiny_llms import WIDTH, TinyLlms, packed_chunk

CPU = torch.device("cpu")
PLACES = [
    ("layers.0.mlp:in", "layers.0.mlp"),
    ("layers.1.mlp:in", "layers.1.mlp"),
    ("layers.1.mlp:in", "layers.2.mlp"),
    ("layers.2", "layers.0.mlp.down_proj:in"),
]
"""Two of them read one place; the last one's target is reached first, and wider."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


def facts_of(name, places=PLACES):
    first, *more = places
    return llm_facts(LlmConfig(name=name, attn="eager"), *first, more)[0]


def load(name, facts):
    cfg = LlmConfig(name=name, attn="eager")
    return FrozenLlm.load(cfg, facts, device=CPU, dtype=torch.float32, with_head=False)


def test_every_pair_has_the_columns_of_a_forward_of_its_own(tiny):
    name, packed = tiny("llama"), packed_chunk()
    facts = facts_of(name)
    rows = load(name, facts).activations(packed)
    assert rows.shape[1] == facts.columns == sum(facts.widths) == 7 * WIDTH + 48
    assert facts.are_sources == (True, False) * 4
    for hook, target in PLACES:
        alone = llm_facts(LlmConfig(name=name, attn="eager"), hook, target)[0]
        place = alone.hook, alone.target_hook
        own = facts.only(*place)
        assert (own.hooks, own.widths, own.target_first) == (alone.hooks, alone.widths, alone.target_first)
        assert torch.equal(rows[:, facts.stretch(*place)], load(name, alone).activations(packed))


def test_names_are_translated_and_faults_are_of_the_pair(tiny):
    places = [(f"layers.{n}.mlp:in", f"blocks.{n}.hook_mlp_out") for n in (0, 2)]
    facts, lines = llm_facts(LlmConfig(name=tiny("gpt2")), *places[0], places[1:])
    assert facts.hooks == ("h.0.mlp:in", "h.0.mlp:out", "h.2.mlp:in", "h.2.mlp:out")
    assert "grid.target_hook[1]=blocks.2.hook_mlp_out is h.2.mlp:out in this model" in lines.splitlines()
    with pytest.raises(ConfigError, match=r"grid.target_hook\[1\]=layers.1.mpl names no module"):
        facts_of(tiny("llama"), [PLACES[0], ("layers.1.mlp:in", "layers.1.mpl")])


def test_a_grid_of_hooks_without_targets_is_as_before(tiny):
    facts = facts_of(tiny("llama"), [("layers.0", None), ("layers.1.mlp.down_proj:in", None)])
    assert facts.hooks == ("layers.0:out", "layers.1.mlp.down_proj:in") and facts.are_sources == (True, True)
    assert facts.stretch("layers.1.mlp.down_proj:in", None) == slice(WIDTH, WIDTH + 48)


def test_rows_are_left_out_by_the_inputs_of_all_pairs_and_by_no_target():
    facts = facts_of("embedded", [(f"layers.{n}", f"layers.{n}.mlp") for n in (1, 2)])
    llm = load("embedded", facts)

    source = open_tokens(TokensConfig(kind="text"), facts, lanes=2, seed=0, rows=220, held_out=False)
    tokens = next(source.open(1, None))
    rows = llm.activations(tokens)
    norms = [part.norm(dim=1) for part in rows.split(facts.widths, 1)]
    multiple = 0.9 * float(min(norm.max() / norm.median() for norm in norms[::2]))
    out = [norm > multiple * norm.median() for norm in norms]
    kept = rows[~(out[0] | out[2])]
    assert (out[1] | out[3]).sum() > 20, "by the targets more would go than there are spare rows"
    assert out[0].any() and out[2].any() and 200 < len(kept) < len(rows) - out[0].sum()
    found = LlmChunkSource(llm, source, rows=200, spare=20, max_norm_multiple=multiple).compute(tokens)
    assert torch.equal(found.rows_RD, kept[:200])
