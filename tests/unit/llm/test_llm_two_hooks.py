"""Two hooks in one forward: against plain forward hooks of the model, and against a model patched by hand."""

from itertools import islice

import pytest
import torch
from test_llm_frozen import chunk, close

from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core.errors import DataError
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import open_tokens
from tests.helpers.tiny_llms import LAYERS, WIDTH, TinyLlms, num_layers

CPU = torch.device("cpu")
MLP = {"llama": "layers.1.mlp", "gpt2": "h.1.mlp", "gpt_neox": "layers.1.mlp"}
PAIRS = [
    ("layers.1.mlp:in", "layers.1.mlp:out"),
    ("layers.1.mlp.down_proj:in", "layers.2"),
    ("layers.2.mlp:out", "layers.0:in"),
    ("layers.1:out", "layers.2:in"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


def load(name, hook, target, *, head=False) -> FrozenLlm:
    cfg = LlmConfig(name=name, attn="eager")
    facts = llm_facts(cfg, hook, target)[0]
    return FrozenLlm.load(cfg, facts, device=CPU, dtype=torch.float32, with_head=head)


def seen_by_plain_hooks(llm: FrozenLlm, packed, hooks) -> list[torch.Tensor]:
    seen = {}
    for hook in hooks:
        path, _, direction = hook.partition(":")

        def look(_module, args, kwargs, output, hook=hook, direction=direction):
            first = args[0] if args else kwargs["hidden_states"]
            out = output if torch.is_tensor(output) else output[0]
            seen[hook] = (first if direction == "in" else out).clone()

        llm.base.get_submodule(path).register_forward_hook(look, with_kwargs=True)
    with torch.no_grad():
        llm.base(**llm.inputs(packed.ids_NS, packed.segment_NS, packed.position_NS))
    return [seen[hook][packed.keep_NS] for hook in hooks]


@pytest.mark.parametrize(("hook", "target"), PAIRS)
def test_one_forward_sees_what_plain_hooks_see(tiny, hook, target):
    packed = chunk()
    got = load(tiny("llama"), hook, target).activations(packed)
    whole = load(tiny("llama"), None, None, head=True)
    wanted = seen_by_plain_hooks(whole, packed, [hook, target])
    assert got.shape[1] == sum(each.shape[1] for each in wanted)
    for mine, theirs in zip(got.split([each.shape[1] for each in wanted], 1), wanted, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("kind", list(MLP))
def test_layers_after_the_last_of_both_are_not_loaded_and_none_of_them_runs(tiny, kind):
    llm = load(tiny(kind), f"{MLP[kind]}:in", MLP[kind])
    assert num_layers(llm) == 2 < LAYERS
    begun, ended = [], []
    llm.base.register_forward_pre_hook(lambda *_: begun.append(1))
    layer = llm.base.get_submodule(MLP[kind].removesuffix(".mlp"))
    layer.register_forward_hook(lambda *_: ended.append(1))
    llm.activations(chunk(lengths=((9, 20, 6), (38,))))
    assert len(begun) == 1 and not ended, "one forward, left before the layer around the MLP ends"
    assert num_layers(load(tiny(kind), "layers.0", "layers.2.mlp")) == 3


@pytest.mark.parametrize("kind", list(MLP))
def test_splicing_replaces_the_target_from_the_input_of_the_same_forward(tiny, kind):
    llm, packed = load(tiny(kind), f"{MLP[kind]}:in", MLP[kind], head=True), chunk()
    torch.manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH)
    rows = []

    def replace(x):
        rows.append(x)
        return x[:, :WIDTH] @ weight

    got = llm.logits(packed, replace)
    close(rows[0], load(tiny(kind), f"{MLP[kind]}:in", MLP[kind]).activations(packed))

    def patch(_module, args, output):
        return torch.where(packed.keep_NS[..., None], args[0] @ weight, output)

    handle = llm.base.get_submodule(MLP[kind]).register_forward_hook(patch)
    with torch.no_grad():
        wanted = llm.model(**llm.inputs(packed.ids_NS, packed.segment_NS, packed.position_NS)).logits
    handle.remove()
    close(got, wanted)
    clean = llm.logits(packed, None)
    assert torch.equal(llm.logits(packed, lambda x: x[:, WIDTH:]), clean)
    assert float((got - clean).norm() / clean.norm()) > 1e-2, "the splice must matter here"


def chunks(llm, multiple):
    tokens = open_tokens(TokensConfig(kind="text"), llm.facts, lanes=2, seed=0, rows=220, held_out=False)
    source = LlmChunkSource(llm, tokens, rows=200, spare=20, max_norm_multiple=multiple)
    assert source.width == llm.facts.columns
    return next(islice(source.open(1, None), 1))


def test_outliers_are_those_of_the_input(tiny):
    llm = load("embedded", "layers.1.mlp:in", "layers.1.mlp")
    width = llm.facts.width
    plain = chunks(llm, None)
    assert plain.rows_RD.shape == (200, llm.facts.columns)
    norm, target_norm = plain.rows_RD[:, :width].norm(dim=1), plain.rows_RD[:, width:].norm(dim=1)
    multiple = float(norm.kthvalue(196).values / norm.median())
    some = chunks(llm, multiple)
    alone = chunks(load("embedded", "layers.1.mlp:in", None), multiple)
    assert 0 < some.excluded == alone.excluded <= 20
    close(some.rows_RD[:, :width], alone.rows_RD)
    assert float(target_norm.max() / target_norm.median()) > multiple, "by the target other rows would go"


def test_a_target_that_is_not_finite_is_named():
    llm = load("embedded", "layers.1.mlp:in", "layers.1.mlp")
    with torch.no_grad():
        llm.base.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"at layers.1.mlp:out of chunk \d+ \(lane 1\) are not finite"):
        chunks(llm, 10.0)
