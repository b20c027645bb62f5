"""A model's files that ask for too much, or make its tokenizer fail, end in one line."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.facts import _check_attention
from sae_dist.llm.hub import loading, resolve_here
from sae_dist.tokens.encoder import Encoder


@pytest.fixture
def model(tmp_path):
    shutil.copytree(resolve_here("embedded"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_labels": 10**9},
        {"text_config": {"num_local_experts": 10**7}},
        {"parts": [{"encoder_layers": 10**5}]},
    ],
)
def test_a_model_asks_for_no_more_than_any_model_has(model, changes):
    config = json.loads((model / "config.json").read_text())
    assert resolve_here(str(model))
    (model / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConfigError, match="config.json has .*=1e.*; at most "):
        resolve_here(str(model))


def test_attention_of_a_part_is_not_fetched_as_code():
    config = AutoConfig.for_model("gemma3", attn_implementation={"text_config": "org/kernels"})
    with pytest.raises(ConfigError, match="attn_implementation=org/kernels, code of a repository"):
        _check_attention(config, LlmConfig(name="x"))
    _check_attention(config, LlmConfig(name="x", trust_remote_code=True))


def test_a_tokenizer_that_panics_is_an_error_in_one_line(model):
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    slow = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(content | {"pre_tokenizer": slow}))
    encoder = Encoder.__new__(Encoder)
    encoder.tokenizer, encoder.vocab_size = AutoTokenizer.from_pretrained(model), 10**6
    for encode in (encoder.ids, encoder.spans):
        with pytest.raises(ConfigError, match="the LLM's tokenizer failed: Onig: Regex search error"):
            encode("a" * 40 + "b")
    with pytest.raises(ConfigError, match="its tokenizer failed: Onig"), loading("x", "its tokenizer"):
        encoder.tokenizer("a" * 40 + "b")
