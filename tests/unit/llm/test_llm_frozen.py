"""The frozen LLM: packing proved on real architectures, truncation, splicing, and chunks for the shuffle."""

from itertools import islice

import pytest
import torch

from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import open_tokens
from tests.helpers.tiny_llms import ENCODERS, LAYERS, OWN, TinyLlms, num_layers
from tests.helpers.tiny_llms import packed_chunk as chunk

CPU = torch.device("cpu")
RUNNABLE = [kind for kind in OWN if kind != "bloom"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


def load(name, *, hook=None, head=False, dtype=torch.float32, attn="eager") -> FrozenLlm:
    cfg = LlmConfig(name=name, attn=attn)
    return FrozenLlm.load(cfg, llm_facts(cfg, hook)[0], device=CPU, dtype=dtype, with_head=head)


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert float((a - b).norm() / b.norm()) < tolerance


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", RUNNABLE)
def test_packed_documents_are_as_if_alone(tiny, kind, attn):
    if kind == "gemma2" and attn == "sdpa":
        pytest.skip("transformers gives this model no sdpa")
    llm, packed = load(tiny(kind), attn=attn), chunk()
    got = llm.activations(packed)
    assert got.shape == (int(packed.keep_NS.sum()), llm.facts.width)
    at = 0
    for n in range(2):
        for number in range(1, int(packed.segment_NS[n].max()) + 1):
            ids = packed.ids_NS[n][packed.segment_NS[n] == number][None]
            alone = llm._capture({"input_ids": ids})[0, 1:]
            close(got[at : at + len(alone)], alone)
            at += len(alone)


@pytest.mark.parametrize("kind", RUNNABLE)
def test_layers_after_the_hook_are_neither_loaded_nor_missed(tiny, kind):
    llm, whole = load(tiny(kind)), load(tiny(kind), head=True)
    assert num_layers(llm) == LAYERS // 2 and num_layers(whole) == LAYERS
    assert llm.config.num_hidden_layers == LAYERS, "forwards may compute with it"
    size, full = (sum(p.numel() for p in each.model.parameters()) for each in (llm, whole))
    assert size < full
    packed = chunk()
    hidden = whole.base(
        **whole.inputs(packed.ids_NS, packed.segment_NS, packed.position_NS), output_hidden_states=True
    ).hidden_states[LAYERS // 2]
    close(llm.activations(packed), hidden[packed.keep_NS])
    close(whole.activations(packed), hidden[packed.keep_NS])


@pytest.mark.parametrize("hook", ["layers.1:in", "layers.1.mlp:in", "layers.1.attn:in", "layers.1.attn"])
def test_hooks_on_inputs_and_on_tuples(tiny, hook):
    llm = load(tiny("llama"), hook=hook)
    seen = []
    path, _, direction = llm.facts.hook.partition(":")

    def look(_module, args, kwargs, output):
        first = args[0] if args else kwargs["hidden_states"]
        seen.append(first if direction == "in" else output if torch.is_tensor(output) else output[0])

    llm.base.get_submodule(path).register_forward_hook(look, with_kwargs=True)
    packed = chunk()
    got = llm.activations(packed)
    llm.base(**llm.inputs(packed.ids_NS, packed.segment_NS, packed.position_NS))
    close(got, seen[-1][packed.keep_NS])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("hook", [None, "layers.1.mlp:in", "layers.1.attn"])
def test_splicing(tiny, kind, hook):
    llm, packed = load(tiny(kind), hook=hook, head=True), chunk()
    run = llm.final_hidden if kind in ENCODERS else llm.logits
    clean = run(packed, None)
    assert clean.shape[:2] == packed.ids_NS.shape
    assert torch.equal(run(packed, lambda x: x), clean)
    close(run(packed, lambda x: x.double()), clean)
    seen = []
    changed = run(packed, lambda x: seen.append(x) or torch.zeros_like(x))
    close(seen[0], load(tiny(kind), hook=hook).activations(packed))
    assert not torch.allclose(changed[packed.keep_NS], clean[packed.keep_NS], atol=1e-3)
    first = (packed.position_NS == 0) & (packed.segment_NS > 0)
    if kind not in ENCODERS:  # A causal model's special first token sees none of the replaced ones.
        torch.testing.assert_close(changed[first], clean[first])
    assert torch.equal(run(packed, None), clean)


def test_the_logits_of_the_embedded_model_predict_text():
    cfg = LlmConfig(name="embedded")
    facts, _ = llm_facts(cfg, None)
    llm = FrozenLlm.load(cfg, facts, device=CPU, dtype=torch.float32, with_head=True)
    tokens = open_tokens(TokensConfig(kind="text"), facts, lanes=1, seed=0, rows=500, held_out=True)
    packed = next(tokens.open(0, None))
    logits = llm.logits(packed, None)
    follows = (packed.segment_NS[:, 1:] == packed.segment_NS[:, :-1]) & packed.keep_NS[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][follows], packed.ids_NS[:, 1:][follows])
    assert float(loss) < 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(tiny, dtype):
    got = load(tiny("llama"), dtype=dtype).activations(chunk())
    assert got.dtype == dtype
    close(got.float(), load(tiny("llama")).activations(chunk()), 0.05)


def test_nothing_is_trained(tiny):
    llm = load(tiny("llama"))
    assert not llm.model.training and not any(p.requires_grad for p in llm.model.parameters())
    assert not llm.activations(chunk()).requires_grad


@pytest.mark.parametrize("leak", ["mask", "positions"])
def test_a_model_that_mixes_packed_documents_is_refused(tiny, leak, monkeypatch):
    honest = FrozenLlm.inputs

    def careless(self, ids, segment, position):
        if leak == "mask":
            segment = torch.ones_like(segment)
        else:
            position = (torch.arange(position.shape[1]) % 16).expand_as(position)
        return honest(self, ids, segment, position)

    monkeypatch.setattr(FrozenLlm, "inputs", careless)
    with pytest.raises(ConfigError, match="lets packed documents see each other, or misplaces them"):
        load(tiny("gpt2"))


def test_missing_weights_are_named(tiny, tmp_path):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny("llama"))
    state = {key: value for key, value in model.state_dict().items() if "layers.1.mlp" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(open(f"{tiny('llama')}/{name}", "rb").read())
    with pytest.raises(ConfigError, match="has no weights for 3 parameters, layers.1.mlp.down_proj"):
        load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ConfigError, match="it does not load: [^\n]*$"):
        load(str(tmp_path))


@pytest.fixture(scope="module")
def embedded():
    return load("embedded", attn="sdpa")


def chunks(llm, count=3, *, rows=200, spare=20, multiple=10.0, start=None):
    cfg = TokensConfig(kind="text")
    tokens = open_tokens(cfg, llm.facts, lanes=2, seed=0, rows=rows + spare, held_out=False)
    source = LlmChunkSource(llm, tokens, rows=rows, spare=spare, max_norm_multiple=multiple)
    assert source.width == llm.facts.width
    return list(islice(source.open(1, start), count))


def test_chunks_are_exact_and_a_function_of_their_position(embedded):
    first = chunks(embedded)
    assert all(each.rows_RD.shape == (200, embedded.facts.width) for each in first)
    again = chunks(embedded, 1, start=first[2].start)
    assert torch.equal(again[0].rows_RD, first[2].rows_RD) and torch.equal(again[0].ids_R, first[2].ids_R)
    assert (again[0].number, again[0].lane, again[0].start) == (5, 1, first[2].start)


def test_ids_belong_to_their_rows(embedded):
    at_embedding = load("embedded", hook="embed_tokens", attn="sdpa")
    (each,) = chunks(at_embedding, 1, multiple=None)
    assert torch.equal(each.rows_RD, at_embedding.base.embed_tokens.weight[each.ids_R])
    assert not (each.ids_R == embedded.facts.prefix[0]).any()


def test_outlying_rows_are_left_out_counted_and_replaced(embedded):
    (plain,) = chunks(embedded, 1, multiple=None)
    assert (plain.excluded, plain.repeated) == (0, 0)
    norm = plain.rows_RD.norm(dim=-1)
    multiple = float(norm.kthvalue(196).values / norm.median())
    (some,) = chunks(embedded, 1, multiple=multiple)
    assert 0 < some.excluded <= 20 and some.repeated == 0 and len(some.rows_RD) == 200
    inner = plain.rows_RD[norm < 0.999 * norm.kthvalue(190).values]
    assert all((some.rows_RD == row).all(1).any() for row in inner)
    assert some.rows_RD.norm(dim=-1).max() < norm.max()


def test_too_few_spares_repeat_the_chunk(embedded):
    (plain,) = chunks(embedded, 1, multiple=None, rows=220, spare=0)
    norm = plain.rows_RD.norm(dim=-1)
    multiple = float(norm.kthvalue(150).values / norm.median())
    (each,) = chunks(embedded, 1, multiple=multiple)
    fit = int((norm <= multiple * norm.median()).sum())
    assert (each.excluded, each.repeated) == (220 - fit, 200 - fit) and each.repeated > 0
    assert torch.equal(each.rows_RD[fit:], each.rows_RD[: 200 - fit])


def test_activations_that_are_not_finite_name_chunk_and_hook():
    llm = load("embedded", attn="sdpa")
    with torch.no_grad():
        llm.base.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"at layers.1:out of chunk 1 \(lane 1\) are not finite"):
        chunks(llm, 1)


def test_a_norm_limit_that_leaves_nothing(embedded):
    with pytest.raises(ConfigError, match="tokens.max_norm_multiple=0.5 would exclude ordinary"):
        chunks(embedded, 1, multiple=0.5)
