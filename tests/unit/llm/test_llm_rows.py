"""Rows are the whole model's: of cut models, of single documents in a sequence, of a router."""

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.batches import by_length, in_reading_order, padding_share
from sae_dist.llm.choose import choose_packing
from sae_dist.llm.cut import class_of, cut_class, differences, shorter_config
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.proof import difference
from sae_dist.tokens.source import open_tokens
from tests.helpers.architectures import rows_alone, save_small, short_texts, try_architecture
from tests.helpers.tiny_llms import TinyLlms, num_layers

CPU = torch.device("cpu")
COUNTING = ("esmc", "gemma4_text")
"""Models that compute with their own number of layers: a residual scale; embeddings for each layer."""
ONE_DOCUMENT = ("mamba", "qwen3_next", "minimax", "bloom", "esm", "deberta-v2", "mobilebert", "marian")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folders: dict[str, Path] = {}

    def save(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            save_small(kind, folders[kind])
        return str(folders[kind])

    return save


def load(name, hook=None, *, witness=False, **how):
    cfg = LlmConfig(name=name, **how)
    facts, _ = choose_packing(cfg, llm_facts(cfg, hook)[0])
    return FrozenLlm.load(cfg, facts, device=CPU, dtype=torch.float32, with_head=False, witness=witness)


def here_or_skip(kind):
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")


def untouched(llm):
    model = getattr(transformers, llm.facts.auto[0]).from_pretrained(llm.facts.path, dtype=torch.float32)
    model.config.use_cache = model.config.get_text_config().use_cache = False
    return model.eval()


def chunks(llm, folder, rows=200):
    tokens = TokensConfig(kind="text", path=str(short_texts(Path(folder))))
    return open_tokens(tokens, llm.facts, lanes=1, seed=0, rows=rows, held_out=False).open(0, None)


@pytest.mark.parametrize("kind", [*COUNTING, *ONE_DOCUMENT, "t5", "llama4_text"])
def test_rows_are_those_of_the_untouched_model(tmp_path, kind):
    here_or_skip(kind)
    tried = try_architecture(kind, tmp_path, rows=200)
    assert tried.apart < 2e-6
    assert tried.words == "rows are those of the whole model; the model is cut after the last hook"
    assert tried.how == ("one document in a sequence" if kind in ONE_DOCUMENT else "packed")


@pytest.mark.parametrize("kind", COUNTING)
def test_a_cut_by_the_config_would_change_the_rows(small, kind):
    here_or_skip(kind)
    name = small(kind)
    llm = load(name)
    assert num_layers(llm) < llm.config.num_hidden_layers
    config = transformers.AutoConfig.from_pretrained(name)
    auto = transformers.AutoModel
    whole = class_of(auto, config, name)
    assert shorter_config(whole, config, llm.facts.hooks) is config
    ids = torch.arange(6, 40)[None]
    config.num_hidden_layers = num_layers(llm)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: num_layers(llm)]
    try:
        shorter = auto.from_pretrained(name, config=config, dtype=torch.float32).eval()
    except (RuntimeError, ValueError):
        return  # Its parameters do not even have the same shapes.
    found, wanted = (each(input_ids=ids) for each in (shorter, untouched(llm)))
    assert not torch.allclose(found[0], wanted[0], rtol=0.01)


def test_a_shorter_config_is_used_only_where_it_makes_the_same_modules(tmp_path_factory):
    config = transformers.AutoConfig.from_pretrained(TinyLlms(tmp_path_factory)("llama"))
    kind = class_of(transformers.AutoModel, config, "llama")
    short = shorter_config(kind, config, ("layers.1:out",))
    assert (short.num_hidden_layers, config.num_hidden_layers) == (2, 4)
    with torch.device("meta"):
        cut, whole = (each._from_config(config) for each in (cut_class(kind, ("layers.1:out",)), kind))
        assert not differences(cut, kind._from_config(short))
    assert {name.split(".")[1] for name in differences(cut, whole)} == {"2", "3"}
    assert cut_class(kind, ("layers.1:out", "norm:out")) is kind


def test_a_model_that_fails_without_its_last_layers_is_loaded_whole(small, monkeypatch):
    def impatient(self, input_ids=None, **inputs):
        assert len(self.layers) == 4, "all layers are asked for"
        return honest(self, input_ids=input_ids, **inputs)

    honest = transformers.LlamaModel.forward
    monkeypatch.setattr(transformers.LlamaModel, "forward", impatient)
    llm = load(small("llama"), witness=True)
    assert num_layers(llm) == 4
    assert llm.proof.startswith("rows are those of the whole model; the model is not cut after the last hook")
    assert "all layers are asked for" in llm.proof


def test_a_model_whose_rows_change_with_the_number_of_layers_is_loaded_whole(small, monkeypatch):
    def scaled(self, hidden_states, *args, **kwargs):
        return honest(self, hidden_states * COUNT[0], *args, **kwargs)

    def forward(self, *args, **kwargs):
        COUNT[0] = len(self.layers)
        return begin(self, *args, **kwargs)

    COUNT = [1]
    honest, begin = transformers.models.llama.modeling_llama.LlamaMLP.forward, transformers.LlamaModel.forward
    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaMLP, "forward", scaled)
    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    llm = load(small("llama"), witness=True)
    assert num_layers(llm) == 4 and "its activations differ by" in llm.proof
    assert num_layers(load(small("llama"))) == 2, "nobody looked"


def test_a_whole_model_that_does_not_fit_is_said(small, monkeypatch):
    monkeypatch.setattr("sae_dist.llm.fit.USABLE", 1e-9)
    llm = load(small("llama"), witness=True)
    assert "were not compared with the whole model's (it needs 0.0 GiB, and" in llm.proof


def test_one_document_in_a_sequence_is_asked_for(small):
    packed, alone = load(small("llama")), load(small("llama"), packed=False)
    assert (packed.facts.packed, alone.facts.packed) == (True, False)
    together, apart = (next(chunks(llm, small("llama"))) for llm in (packed, alone))
    assert torch.equal(together.ids_NS[together.keep_NS], apart.ids_NS[apart.keep_NS])
    assert int(apart.segment_NS.max()) == 1 < int(together.segment_NS.max())
    for llm, chunk in ((packed, together), (alone, apart)):
        wanted = rows_alone(untouched(llm), llm.facts.hook, chunk)
        torch.testing.assert_close(llm.activations(chunk), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="llm.packed=true: .* carries a state from token to token; leave"):
        llm_facts(LlmConfig(name=small("mamba"), packed=True), None)


def test_documents_of_similar_length_share_a_batch_and_rows_keep_their_order(small):
    llm = load(small("mamba"))
    chunk = next(chunks(llm, small("mamba"), rows=800))
    batches = list(by_length(chunk))
    assert len(batches) > 1 and sum(len(each[0]) for each in batches) == len(chunk.ids_NS)
    lengths = [[int(n) for n in (each[1] > 0).sum(1)] for each in batches]
    assert all(
        min(each) >= 0.75 * max(each) and max(each) == batch[0].shape[1]
        for each, batch in zip(lengths, batches, strict=True)
    )
    ids = torch.cat([batch[0][batch[3]] for batch in batches])
    assert torch.equal(in_reading_order(ids, batches), chunk.ids_NS[chunk.keep_NS])
    assert 0 < padding_share(chunk, packed=False) < 0.25
    rows = llm.activations(chunk)
    assert difference(rows, rows_alone(untouched(llm), llm.facts.hook, chunk), llm.facts.widths) < 1e-5


def test_a_lane_of_single_documents_goes_on_where_it_stopped(small):
    llm = load(small("mamba"))
    first = [next(each) for each in [chunks(llm, small("mamba"))] for _ in range(3)]
    tokens = TokensConfig(kind="text", path=str(Path(small("mamba")) / "texts.jsonl"))
    source = open_tokens(tokens, llm.facts, lanes=1, seed=0, rows=200, held_out=False)
    again = next(source.open(0, first[2].start))
    assert torch.equal(again.ids_NS, first[2].ids_NS)
    assert torch.equal(llm.activations(again), llm.activations(first[2]))


def test_splicing_single_documents(small):
    for kind in ("mamba", "esm"):
        cfg = LlmConfig(name=small(kind))
        facts = llm_facts(cfg, None)[0]
        llm = FrozenLlm.load(cfg, facts, device=CPU, dtype=torch.float32, with_head=True)
        chunk = next(chunks(llm, small(kind)))
        run = llm.logits if facts.causal else llm.final_hidden
        clean = run(chunk, None)
        assert torch.equal(run(chunk, lambda x: x), clean)
        changed = run(chunk, torch.zeros_like)
        assert not torch.allclose(changed[chunk.keep_NS], clean[chunk.keep_NS], atol=1e-3)


def test_a_router_gives_its_rows_without_the_axis_of_the_batch(small):
    llm = load(small("qwen3_moe"), "layers.1.mlp.gate")
    chunk = next(chunks(llm, small("qwen3_moe")))
    found = llm.activations(chunk)
    wanted = rows_alone(untouched(llm), llm.facts.hook, chunk)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    whole = FrozenLlm.load(
        LlmConfig(name=small("qwen3_moe")), llm.facts, device=CPU, dtype=torch.float32, with_head=True
    )
    assert torch.equal(whole.logits(chunk, lambda x: x), whole.logits(chunk, None))


def test_attention_is_chosen_where_the_model_has_no_sdpa(small):
    for kind, wanted in (("gpt_neo", "eager"), ("mpnet", "eager"), ("llama", "sdpa")):
        facts = llm_facts(LlmConfig(name=small(kind)), None)[0]
        llm = load(small(kind))
        assert facts.attn == llm.model.config._attn_implementation == wanted
    with pytest.raises(ConfigError, match="llm.attn=sdpa is not supported by GPTNeoModel"):
        llm_facts(LlmConfig(name=small("gpt_neo"), attn="sdpa"), None)


def test_padding_that_a_model_sees_is_refused(small):
    with pytest.raises(ConfigError, match="sees padding: activations differ by .*; use another model"):
        load(small("fnet"))
    facts = dataclasses.replace(llm_facts(LlmConfig(name=small("fnet")), None)[0], packed=True)
    with pytest.raises(ConfigError, match="cannot be run on packed documents .*; use llm.packed=false"):
        FrozenLlm.load(LlmConfig(name=small("fnet")), facts, device=CPU, dtype=torch.float32, with_head=False)


def test_layers_of_the_text_part_are_found_in_a_model_that_also_reads_images(tmp_path):
    tried = try_architecture("llava", tmp_path, rows=100)
    assert (tried.how, tried.apart < 2e-6) == ("packed", True), tried
