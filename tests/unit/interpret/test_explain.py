"""Which latents fired on a text: the codes of evaluation, parts that add up, effects, flags and refusals."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import sae_dist as sd
from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.export.exported import ExportedSae
from sae_dist.export.statistics import CodeStatistics
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.place import Place
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import held_out_tokens
from tests.helpers.architectures import save_small
from tests.helpers.dictionaries import FORMS, KINDS
from tests.helpers.in_use import causal, dictionary
from tests.helpers.tiny_llms import CONTEXT, EMBEDDED, WIDTH, TinyLlms

CPU = torch.device("cpu")
NORMS = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}
SMALL = ("qwen2", "mixtral")
ENCODERS = ("bert", "t5")
FAMILIES = ("gpt2", "gpt_neox", "llama", "gemma2", *SMALL)
LAYER = {"gpt2": "h.1", "bert": "encoder.layer.1", "t5": "encoder.block.1"}
TEXT = "def f(self, other):\n    return self + other  # Paris"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    saved = TinyLlms(tmp_path_factory)
    for kind in (*SMALL, "t5"):
        folder = tmp_path_factory.mktemp(kind)
        save_small(kind, folder)
        saved.saved[kind] = str(folder)
    return saved


@pytest.fixture(scope="module")
def llama(tiny):
    return causal(tiny("llama"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    texts = [f"the {n} houses of Paris, and {n * 7} trees in the garden of letter {n}" for n in range(200)]
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return path


def layer(kind):
    return LAYER.get(kind, "layers.1")


def trained_on(folder, d):
    """The same dictionary, which names its model."""
    return Dictionary(d.sae, Place(Path("nowhere"), said=d.place.said | {"model_name": folder}))


def held_out_text(corpus, facts):
    """The text of the first held-out document, and its token ids."""
    source = held_out_tokens(TokensConfig(kind="text", path=str(corpus)), facts, seed=0, rows=8)
    ids = next(source.documents.documents(0, 0, 0))[1].ids_T.tolist()
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    encode = AutoTokenizer.from_pretrained(facts.path)
    return next(each for each in texts if encode(each, add_special_tokens=False)["input_ids"] == ids), ids


def evaluated(d, folder, corpus, hook, target):
    """A held-out document, and what evaluation's own path through the cut model gives the dictionary."""
    cfg = LlmConfig(name=folder)
    facts = llm_facts(cfg, hook, target)[0]
    text, ids = held_out_text(corpus, facts)
    llm = FrozenLlm.load(cfg, facts, device=CPU, dtype=torch.float32, with_head=False)
    tokens = TokensConfig(kind="text", path=str(corpus))
    source = held_out_tokens(tokens, facts, seed=0, rows=len(ids))
    rows = LlmChunkSource(llm, source, rows=len(ids), spare=0, max_norm_multiple=None).open(0, None)
    chunk = next(rows)
    assert chunk.ids_R.tolist() == ids
    return text, d.sae.encode(chunk.rows_RD[:, : d.width], d._encoding.kernels.encode_topk)


@pytest.mark.parametrize("kind", [*FAMILIES, *ENCODERS])
@pytest.mark.parametrize("form", ["autoencoder", "skip"])
def test_codes_are_those_of_evaluation(tiny, corpus, kind, form):
    if form == "skip" and kind not in ("llama", "bert"):
        pytest.skip("two families are enough for a second hook")
    mlp = f"{layer(kind)}.{'output.dense' if kind == 'bert' else 'mlp'}"
    d = trained_on(tiny(kind), dictionary(form=form, hook=layer(kind), target=mlp))
    target = mlp if form == "skip" else None
    text, wanted = evaluated(d, tiny(kind), corpus, layer(kind), target)
    found = d.explain(sd.model(d), text)
    special = torch.tensor(found.tokens_seen["special"])
    assert special.sum() == len(found.about["prefix"]) + len(found.about["suffix"])
    assert special.any() or kind == "t5"
    ordinary = ~special[found.codes.rows]
    assert torch.equal(found.codes.latents[ordinary], wanted.latent_P)
    assert torch.equal(found.codes.values[ordinary], wanted.value_P)
    assert (
        found.codes.l0[~special].tolist()
        == torch.bincount(
            torch.bucketize(torch.arange(len(wanted.latent_P)), wanted.offsets_B, right=True) - 1
        ).tolist()
    )


def seen(lm, path, ids, into=False):
    """What comes out of a module of the untouched model, or goes in [S, D]."""
    kept = []

    def note(_module, args, kwargs, output):
        first = args[0] if args else kwargs.get("hidden_states")
        kept.append(first if into else output if torch.is_tensor(output) else output[0])

    handle = lm.base_model.get_submodule(path).register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        lm(torch.tensor([ids]))
    handle.remove()
    return kept[0][0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_the_activation(llama, kind, form):
    d = dictionary(kind, form).to(dtype=torch.float64)
    found = d.explain(llama, TEXT)
    ids = found.tokens_seen["token_id"]
    x = seen(llama, "layers.1", ids)
    y = x if form == "autoencoder" else seen(llama, "layers.1.mlp", ids)
    terms = found.codes.values[:, None] * d.W_dec[found.codes.latents]
    total = torch.zeros_like(y).index_add(0, found.codes.rows, terms) + d.b_dec + found.error
    total = total if form != "skip" else total + x @ d.sae.W_skip_ED.T
    assert torch.allclose(total, y, rtol=0, atol=1e-9 * float(y.abs().max()))

    shares = torch.zeros(len(ids), dtype=torch.float64)
    shares.index_add_(0, torch.tensor(found.pairs["position"]), torch.tensor(found.pairs["share"]).double())
    rest = [torch.tensor(found.tokens_seen[key]).double() for key in ("error_share", "skip_share")]
    assert torch.allclose(shares + sum(rest), torch.ones(len(ids), dtype=torch.float64), atol=1e-9)

    u = y - d.b_dec
    one = len(found.codes.latents) // 2
    row, latent = int(found.codes.rows[one]), int(found.codes.latents[one])
    by_hand = float(found.codes.values[one] * (d.W_dec[latent] @ u[row]) / (u[row] @ u[row]))
    assert found.pairs["share"][one] == pytest.approx(by_hand, rel=1e-6)
    fvu = found.error.square().sum(1) / u.square().sum(1)
    assert torch.allclose(torch.tensor(found.tokens_seen["fvu"]).double(), fvu)


STEP = 1e-3
"""Of the difference, in codes: norms of some models compute in float32."""


def margin(lm, final, row, token):
    """The logit of a token less the mean, from what the final norm reads."""
    norm = lm.base_model.get_submodule(NORMS.get(lm.config.model_type, "norm"))
    logits = lm.get_output_embeddings()(norm(final[row][None, None]))[0, 0]
    cap = getattr(lm.config, "final_logit_softcapping", None)
    logits = logits if cap is None else (logits / cap).tanh() * cap
    return float(logits[token] - logits.mean())


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILIES)
def test_direct_effects_are_finite_differences(tiny, kind):
    lm = causal(tiny(kind))
    lm.config._experts_implementation = "eager"  # the only one in float64
    d = dictionary(hook=layer(kind), F=60).to(dtype=torch.float64)
    found = d.explain(lm, TEXT)
    ids, pairs, following = found.tokens_seen["token_id"], found.pairs, found.tokens_seen["next_id"]
    final = seen(lm, NORMS.get(kind, "norm"), ids, into=True)
    assert following[:-1] == ids[1:]
    assert following[-1] == int(lm(torch.tensor([ids])).logits[0, -1].argmax())
    assert found.tokens_seen["next_is"] == ["text"] * (len(ids) - 1) + ["predicted"]
    scale = max(map(abs, pairs["effect"]))
    assert scale > 1e-3
    for place in range(0, len(pairs["latent"]), 11):
        row, latent, code = (pairs[key][place] for key in ("position", "latent", "code"))
        step = STEP * code * d.W_dec[latent]
        moved = [final.clone().index_add(0, torch.tensor([row]), sign * step[None]) for sign in (1, -1)]
        up, down = (margin(lm, each, row, following[row]) for each in moved)
        assert pairs["effect"][place] == pytest.approx((up - down) / (2 * STEP), rel=1e-3, abs=1e-3 * scale)


@pytest.mark.parametrize(
    ("kind", "hook", "there"),
    [
        ("llama", "layers.1.mlp:out", True),
        ("llama", "layers.3", True),
        ("llama", "layers.2:in", True),
        ("llama", "layers.0.self_attn:out", True),
        ("gpt_neox", "layers.1.attention:out", True),
        ("gpt2", "wte:out", True),
        ("llama", "layers.1.mlp:in", False),
        ("llama", "layers.1.self_attn.q_proj:out", False),
        ("gemma2", "layers.1.mlp:out", False),
    ],
)
def test_only_the_residual_stream_has_direct_effects(tiny, kind, hook, there):
    found = dictionary(hook=hook).explain(causal(tiny(kind), torch.float32), TEXT)
    reason = found.about["effect_reason"]
    assert (reason is None) == there == (found.pairs["effect"][0] is not None)
    assert there or "residual" in reason and reason in str(found)


def test_an_encoder_has_no_direct_effects_and_its_marks_are_special(tiny):
    d = trained_on(tiny("bert"), dictionary(hook="encoder.layer.1"))
    found = d.explain(sd.model(d), "two words")
    assert "encoder" in found.about["effect_reason"]
    assert found.tokens_seen["special"][0] and found.tokens_seen["special"][-1]
    assert found.tokens_seen["next_id"][0] is None


RARE = 1234


def fires_on(lm, token):
    """A dictionary at the embedding whose first latent fires on one token alone: that has the longest."""
    with torch.no_grad():
        lm.get_input_embeddings().weight[token] *= 100
        table = lm.get_input_embeddings().weight.detach()
    own = table[token] / table[token].norm()
    others = float((table @ own).sort().values[-2])
    W = torch.stack([own, torch.zeros_like(own)])
    bias = torch.tensor([-others - 1.0, -1.0], dtype=own.dtype)
    sae = ExportedSae(
        kind="relu", W_enc_FD=W, W_dec_FE=W.clone(), b_dec_E=torch.zeros(WIDTH, dtype=own.dtype), b_enc_F=bias
    )
    return Dictionary(sae, Place(Path("nowhere"), said={"hook_name": "layers.0:in"}))


def test_a_latent_of_one_rare_token_is_found_on_it_and_nowhere_else(tiny):
    lm = causal(tiny("llama"))
    d = fires_on(lm, RARE)
    ids = [0, 40, 41, RARE, 42, 43, RARE, 44]
    found = d.explain(lm, ids, labels={0: "the rare one"})
    assert found.pairs["position"] == [3, 6]
    assert found.pairs["token_id"] == [RARE, RARE]
    piece = AutoTokenizer.from_pretrained(tiny("llama")).decode([RARE])
    assert found.pairs["token"] == [piece, piece] and found.pairs["label"] == ["the rare one"] * 2
    # So long an activation is an outlier: shown and flagged, not ranked.
    assert found.tokens_seen["outlier"] == [each == RARE for each in ids]
    assert found.tokens_seen["special"] == [True] + [False] * 7
    assert found.latents_seen["latent"] == [] and found.about["counted"] == 5
    as_text = d.explain(lm, piece * 3)
    assert as_text.pairs["position"] == [
        place for place, each in enumerate(as_text.tokens_seen["token_id"]) if each == RARE
    ]


def test_latents_of_a_text_are_summed_over_what_counts(llama):
    d = dictionary().to(dtype=torch.float64)
    rates = torch.rand(200, generator=torch.Generator().manual_seed(0)) / 4 + 1e-3
    found = d.explain(llama, TEXT, rates=CodeStatistics(rates, rates, rates, rates, 0.0, 10**6))
    counted = torch.tensor(found.tokens_seen["counted"])
    dense = found.codes.dense()[counted]
    columns = {key: torch.tensor(each) for key, each in found.latents_seen.items() if key != "label"}
    order = columns["latent"]
    assert sorted(order.tolist()) == (dense > 0).any(0).nonzero()[:, 0].tolist()
    assert torch.allclose(columns["sum"].double(), dense.sum(0)[order])
    assert torch.allclose(columns["max"].double(), dense.max(0).values[order])
    assert torch.equal(columns["count"], (dense > 0).sum(0)[order])
    assert torch.equal(columns["at"], found.codes.dense().mul(counted[:, None]).argmax(0)[order])
    lift = columns["count"] / (rates[order] * counted.sum())
    assert torch.allclose(columns["lift"].float(), lift, rtol=1e-3)
    assert columns["score"].tolist() == sorted(columns["score"].tolist(), reverse=True)
    assert torch.allclose(columns["score"], columns["sum"] * columns["surprise"])
    assert found.table.num_rows == len(found.codes.latents)
    assert found.tokens.num_rows == len(counted) and found.latents.num_rows == len(order)


def test_without_rates_codes_alone_rank(llama):
    found = dictionary().explain(llama, TEXT)
    assert "never measured" in found.about["rates_reason"] and "never measured" in str(found)
    assert found.latents_seen["score"] == found.latents_seen["sum"]
    assert found.latents_seen["unusual"] == [None] * len(found.latents_seen["latent"])
    assert json.loads(found.to_json())["latents"][0]["p"] is None


def test_messages_go_through_the_template(tiny):
    lm = causal(tiny("llama"))
    tokenizer = AutoTokenizer.from_pretrained(tiny("llama"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    chat = [{"role": "user", "content": "two words"}]
    found = dictionary().explain(sd.model(dictionary(), lm, tokenizer=tokenizer), chat)
    assert "template" in found.about["given_as"]
    assert "".join(found.tokens_seen["token"][1:]) == "user: two words\n"


LONG = list(range(10, 11 + CONTEXT))


@pytest.mark.parametrize(
    ("text", "how", "said"),
    [
        ("", {}, "empty"),
        ([], {}, "empty"),
        ([0], {}, "special tokens only"),
        (LONG, {}, f"at most {CONTEXT}"),
        (["two", "texts"], {}, "a text"),
        (7, {}, "a text"),
        ([1.5, 2.0], {}, "a text"),
        (b"bytes", {}, "a text"),
        ("a", {"top": 0}, "top=0"),
        ("a", {"labels": {500: "x"}}, "latent 500"),
        ("a", {"labels": ["x"]}, "labels"),
        ("a", {"rates": torch.zeros(3)}, "rates"),
        ("a", {"rates": torch.full((200,), 2.0)}, "rates"),
        ("a", {"rates": "often"}, "rates"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_a_line(tiny, llama, text, how, said):
    with pytest.raises(ConfigError, match=said) as error:
        dictionary().explain(llama, text, **how)
    assert "\n" not in str(error.value)


def test_another_model_needs_force_and_its_width(tiny, llama):
    d = trained_on("someone/else", dictionary())
    with pytest.raises(ConfigError, match="force=True"):
        d.explain(llama, TEXT)
    assert d.explain(llama, TEXT, force=True).about["tokens"] > 5
    with pytest.raises(ConfigError, match="width 32, the dictionary is for 12"):
        dictionary(D=12, out=12).explain(llama, TEXT)
    assert not [each for each in llama.modules() if each._forward_hooks or each._forward_pre_hooks]


def test_the_embedded_model_needs_no_name_of_its_own():
    d = dictionary(D=256, out=256)
    lm = causal(str(EMBEDDED), torch.float32)
    assert d.explain(lm, TEXT).about["prefix"] == [{"id": 0, "token": "<|bos|>"}]
