"""Chats: rendered by the tokenizer's template, with the words of some roles as activations."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_tokens_sources import FACTS

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.tokens.chat import Chat, spans_of
from sae_dist.tokens.encoder import Encoder
from sae_dist.tokens.kept import CODE, Kept, UnusableDocument
from sae_dist.tokens.source import open_tokens
from tests.helpers.tiny_llms import EMBEDDED

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
STRIPPED = (
    "<|bos|>{% for m in messages %}[{{ 'model' if m.role == 'assistant' else m.role }}] "
    "{{ m.content | trim }}\n{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "{% endif %}{% endfor %}"
)
SHORT = "{% for m in messages %}{{ m.content[1:] }}{% endfor %}"
MESSAGES = [
    {"role": "system", "content": "be short", "name": None},
    {"role": "user", "content": "  what is the user?\n"},
    {"role": "assistant", "content": "the user is you"},
    {"role": "user", "content": "thanks"},
    {"role": "assistant", "content": "be short"},
]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(FACTS)


def chat(encoder, template, roles=None):
    encoder.tokenizer.chat_template = template
    return Chat(encoder, "x", roles)


def words(encoder, template, roles):
    """The text of the tokens that count, one string per run of them."""
    found = chat(encoder, template, roles).read(MESSAGES)
    runs, before = [], False
    for number, other in zip(found.ids_T, found.other_T, strict=True):
        if not other:
            piece = encoder.tokenizer.decode([number])
            runs = [*runs[:-1], runs[-1] + piece] if before else [*runs, piece]
        before = not other
    return runs


@pytest.mark.parametrize("template", [CHATML, STRIPPED, THINKING])
def test_the_words_of_a_role_and_no_others(encoder, template):
    assert [each.strip() for each in words(encoder, template, ["assistant"])] == [
        "the user is you",
        "be short",
    ]
    assert [each.strip() for each in words(encoder, template, ["user"])] == ["what is the user?", "thanks"]
    assert len(words(encoder, template, ["user", "assistant", "system"])) == 5


def test_every_token_is_read_as_context(encoder):
    some, all_ = (chat(encoder, CHATML, roles).read(MESSAGES).ids_T for roles in (["assistant"], None))
    assert np.array_equal(some, all_)
    assert encoder.tokenizer.decode(all_).count("<|im_start|>") == 5


def test_bos_is_not_doubled(encoder):
    found = Kept((0,)).read(chat(encoder, STRIPPED).read(MESSAGES))
    assert 0 not in found.ids_T and not (found.code_T == CODE["special"]).any()


def test_a_template_that_rewrites_is_refused(encoder):
    with pytest.raises(UnusableDocument, match="is rewritten by the chat template"):
        chat(encoder, SHORT, ["user"]).read(MESSAGES)
    assert len(chat(encoder, SHORT).read(MESSAGES).ids_T)
    assert words(encoder, "{% for m in messages %}{{ m.content | upper }}, {% endfor %}", ["user"])


@pytest.mark.parametrize(
    "value, says",
    [
        ("text", "is not a list of messages"),
        ([], "is not a list of messages"),
        ([{"who": "me", "says": "x"}], "not an object with role and content; its fields: who, says"),
        ([{"role": None, "content": "x"}], "not an object with role and content"),
    ],
)
def test_what_is_no_chat(encoder, value, says):
    with pytest.raises(UnusableDocument, match=says):
        chat(encoder, CHATML).read(value)


def test_a_chat_as_an_object_of_lists_and_in_parts(encoder):
    reader = chat(encoder, CHATML)
    apart = {key: [each.get(key) for each in MESSAGES] for key in ("role", "content")}
    assert np.array_equal(reader.read(apart).ids_T, reader.read(MESSAGES).ids_T)
    names = {"user": "human", "assistant": "gpt"}
    other = [{"from": names.get(each["role"], each["role"]), "value": each["content"]} for each in MESSAGES]
    assert np.array_equal(reader.read(other).ids_T, reader.read(MESSAGES).ids_T)


def test_no_template(encoder):
    with pytest.raises(ConfigError, match="holds chats, and the LLM's tokenizer has no chat template"):
        chat(encoder, None)


def test_spans_count_the_text_without_marks():
    assert spans_of("ab\ue0f0cd\ue0f1e\ue0f0f\ue0f1") == [(2, 4), (5, 6)]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_column_of_chats(tmp_path, streaming):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(STRIPPED)
    lines = [json.dumps({"messages": MESSAGES, "n": number}) for number in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    facts = replace(FACTS, path=str(tmp_path), special_ids=(0,))
    cfg = TokensConfig(
        kind="hf", dataset="json", data_files=str(tmp_path / "chats.jsonl"), column="messages", context=64
    )
    cfg.streaming, cfg.roles = streaming, ["assistant"]
    source = open_tokens(cfg, facts, lanes=1, seed=0, rows=20, held_out=False)
    chunk = next(source.open(0, None))
    kept = Encoder(facts).tokenizer.decode(chunk.ids_NS[chunk.keep_NS])
    assert "the user is you" in kept and "thanks" not in kept and "model" not in kept
    assert chunk.left_out["roles"] > 20
    cfg.roles = ["assitant"]
    with pytest.raises(ConfigError, match=r"has no text .*\(left out: \d+ by tokens.roles\)"):
        next(open_tokens(cfg, facts, lanes=1, seed=0, rows=20, held_out=False).open(0, None))
    cfg.column = "n"
    cfg.roles = ["assistant"]
    with pytest.raises(ConfigError, match="tokens.roles=.* is read with a column of chats"):
        open_tokens(cfg, facts, lanes=1, seed=0, rows=20, held_out=False)
