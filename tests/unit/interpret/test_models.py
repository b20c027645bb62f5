"""The models that a dictionary is used on: as trained, or as the user holds them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import sae_dist as sd
from sae_dist.core.errors import ConfigError
from tests.helpers.in_use import causal, dictionary, tokens
from tests.helpers.tiny_llms import COMMON, EMBEDDED, TinyLlms

MORE = {
    "qwen2": dict(num_key_value_heads=2),
    "qwen3_moe": dict(
        num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "mixtral": dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    "mamba": dict(state_size=4, intermediate_size=64),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


@pytest.mark.parametrize("kind", MORE)
def test_more_architectures_are_attached_to_and_steered(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=2048, **{**COMMON, **MORE[kind]})
    lm = AutoModelForCausalLM.from_config(config).eval()
    d, ids = dictionary("relu"), tokens()
    with torch.no_grad():
        clean = lm(ids).logits
        with d.attach(lm) as a:
            assert torch.equal(lm(ids).logits, clean)
        assert int(a.codes.l0.min()) > 0
        with d.steer(lm, {5: sd.add(3.0)}) as s:
            assert not torch.equal(lm(ids).logits, clean)
            generated = lm.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert s.intervened == 24 + 24 + 2 * 2 and generated.shape == (2, 15)


def test_a_users_model_is_named_and_tokenises_as_its_tokenizer_does(tiny):
    lm = sd.model(dictionary(), causal(tiny("llama"), torch.float32))
    ids = lm.ids("def f(x):").tolist()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    assert ids == [tokenizer.bos_token_id, *tokenizer("def f(x):", add_special_tokens=False)["input_ids"]]
    assert lm.causal and lm.pieces(ids[1:3]) == [tokenizer.decode([each]) for each in ids[1:3]]


def test_messages_go_through_the_chat_template(tiny):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    lm = sd.model(dictionary(), causal(tiny("llama"), torch.float32), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="no chat template; give a text"):
        lm.ids([{"role": "user", "content": "hello"}])
    tokenizer.chat_template = "{% for each in messages %}{{ each.role }}: {{ each.content }}\n{% endfor %}"
    ids = lm.ids([{"role": "user", "content": "hello"}])
    assert tokenizer.decode(ids[1:]) == "user: hello\n" and ids[0] == tokenizer.bos_token_id


def test_a_batch_is_padded_on_the_left(tiny):
    lm = sd.model(dictionary(), causal(tiny("llama"), torch.float32))
    batch = lm.batch([[7, 8], [9, 10, 11]])
    assert batch["input_ids"][:, -2:].tolist() == [[7, 8], [10, 11]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda d, lm: sd.model(d), "does not say its model; give one"),
        (lambda d, lm: sd.model(d, "nowhere/at/all"), "does not exist"),
        (lambda d, lm: sd.model(d, torch.nn.Linear(2, 2)), "a Linear is no model of transformers"),
        (lambda d, lm: sd.model(d, lm).ids([1, 10**6]), "token ids from 1 to 1000000"),
        (lambda d, lm: sd.model(d, lm).ids([-1]), "token ids from -1 to -1"),
    ],
)
def test_bad_input_is_one_line(tiny, act, message):
    with pytest.raises(ConfigError, match=message) as error:
        act(dictionary(), causal(tiny("llama"), torch.float32))
    assert "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_takes_ids(tiny):
    lm = AutoModelForCausalLM.from_config(causal(tiny("llama")).config)
    lm.config._name_or_path = ""
    held = sd.model(dictionary(), lm)
    assert held.tokenizer is None and held.ids([5, 6]).tolist() == [5, 6] and held.pieces([5]) == ["5"]
    with pytest.raises(ConfigError, match="has no tokenizer; give token ids"):
        held.ids("text")
