"""The local replacement model: linear, equal to the untouched model, and its rows are its derivatives."""

import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.graph.exactness import check_linear, together, untouched
from sae_dist.graph.replacement import Replacement
from sae_dist.graph.trace import trace
from tests.helpers.graphs import prompt, replacement, small_model, transcoders

FEW = ("llama", "gpt2", "gemma2")
MORE = (
    "gemma3_text",
    "qwen3",
    "gpt_neox",
    "mixtral",
    "olmo2",
    "phi",
    "bloom",
    "gptj",
    "gpt_oss",
    "falcon",
    "cohere",
    "granite",
    "opt",
    "mpt",
    "deepseek_v3",
    "stablelm",
    "mistral",
    "afmoe",
    "diffllama",
)
ARCHITECTURES = [*FEW, *(pytest.param(kind, marks=pytest.mark.long) for kind in MORE)]


def all_rows(model: Replacement) -> torch.Tensor:
    """The rows of every target, [P + T, C], some at a time."""
    targets = torch.arange(model.num_latents + len(model.tokens_T))
    with model.opened(32):
        return torch.cat([model.rows(part) for part in targets.split(32)])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_rows_are_a_linear_model_of_the_untouched_one(kind):
    model = replacement(kind)
    rows = all_rows(model)
    one, zero = torch.ones(1, model.num_sources).double(), torch.zeros(1, model.num_sources).double()
    constant = together(model.run(zero))[0]
    size = rows.abs().sum(1) + constant.abs()
    assert model.num_latents > 50 and check_linear(model) < 1e-9
    # Row sums and constant are what the untouched model computes.
    assert float(((rows.sum(1) + constant - untouched(model)) / size).abs().max()) < 1e-9
    assert float(((together(model.run(one))[0] - untouched(model)) / size).abs().max()) < 1e-9
    # Any sources at all, by independent forwards.
    factors = 6 * torch.rand(4, model.num_sources, dtype=torch.float64) - 3
    assert float(((together(model.run(factors)) - factors @ rows.T - constant) / size).abs().max()) < 1e-8


@pytest.mark.parametrize("form", ["transcoder", "skip"])
@pytest.mark.parametrize("latents", ["topk", "relu", "jumprelu", "gated"])
def test_every_kind_of_transcoder(latents, form):
    model = replacement("llama", latents, form)
    rows = all_rows(model)
    constant = together(model.run(torch.zeros(1, model.num_sources).double()))[0]
    size = rows.abs().sum(1) + constant.abs()
    assert float(((rows.sum(1) + constant - untouched(model)) / size).abs().max()) < 1e-9
    for site, active, x_SD in zip(model.sites, model.active, model.clean.inputs, strict=True):
        codes = site.dictionary.encode(x_SD)
        dense = torch.zeros(codes.shape, dtype=torch.float64)
        dense[active.position_P, active.latent_P] = active.code_P
        torch.testing.assert_close(dense, codes.dense())


def test_nothing_bends():
    model = replacement("llama", form="skip")
    with model.opened(2):
        leaves, inputs = model._opened.leaves, model._opened.inputs
        with torch.enable_grad():
            slopes = torch.autograd.grad(
                sum(x.sin().sum() for x in inputs[1:]), leaves, create_graph=True, allow_unused=True
            )
            # Of sin(x) the second derivative is that of sin alone: none is left of a straight x.
            straight = torch.autograd.grad(
                sum(x.sum() for x in inputs[1:]), leaves, create_graph=True, allow_unused=True
            )
        for first, bent in ((slopes, True), (straight, False)):
            first = sum(each.sin().sum() for each in first if each is not None)
            second = torch.autograd.grad(first, leaves, allow_unused=True)
            assert any(each is not None and bool(each.any()) for each in second) == bent


def test_rows_are_finite_differences():
    model = replacement("gpt2", "relu", "skip")
    rows = all_rows(model)
    one, step = torch.ones(model.num_sources).double(), 1e-3
    picked = torch.randperm(model.num_sources, generator=torch.Generator().manual_seed(1))[:24]
    up, down = (one.repeat(24, 1) for _ in range(2))
    up[torch.arange(24), picked] += step
    down[torch.arange(24), picked] -= step
    slope = (together(model.run(up)) - together(model.run(down))) / (2 * step)
    torch.testing.assert_close(slope.T, rows[:, picked], rtol=2e-4, atol=1e-9)


def by_hand(model: Replacement) -> torch.Tensor:
    """The rows of a llama, from its weights and formulas alone: patterns and norms as they come out."""
    config, base, S = model.lm.model.config, model.lm.base, len(model.ids_S)
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    eps, frozen = config.rms_norm_eps, []

    def norm(x, weight, place):
        if len(frozen) <= place:
            frozen.append((x.square().mean(-1, keepdim=True) + eps).rsqrt().detach())
        return weight * x * frozen[place]

    def turned(x):
        base_ = config.rope_parameters["rope_theta"]
        rate = base_ ** -(torch.arange(0, size, 2).double() / size)
        angle = torch.outer(torch.arange(S).double(), torch.cat([rate, rate]))
        half = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * angle.cos() + half * angle.sin()

    patterns = []

    def attention(x, layer, place):
        own = layer.self_attn
        value = (x @ own.v_proj.weight.T).view(S, groups, size).repeat_interleave(heads // groups, 1)
        if len(patterns) <= place:
            query = turned((x @ own.q_proj.weight.T).view(S, heads, size).transpose(0, 1))
            key = turned((x @ own.k_proj.weight.T).view(S, groups, size).transpose(0, 1))
            score = query @ key.repeat_interleave(heads // groups, 0).transpose(1, 2) / size**0.5
            seen = torch.ones(S, S, dtype=torch.bool).tril()
            patterns.append(score.masked_fill(~seen, -torch.inf).softmax(-1).detach())
        mixed = torch.einsum("hst,thd->shd", patterns[place], value)
        return mixed.reshape(S, -1) @ own.o_proj.weight.T

    def run(embedding, written):
        x, read = embedding, []
        for place, layer in enumerate(base.layers):
            normed = norm(x, layer.input_layernorm.weight, 2 * place)
            x = x + attention(normed, layer, place)
            read.append(norm(x, layer.post_attention_layernorm.weight, 2 * place + 1))
            x = x + written[place]
        return (*read, norm(x, base.norm.weight, 2 * len(base.layers))[-1])

    clean = (base.embed_tokens.weight[model.ids_S], model.clean.outputs)
    run(*clean)
    slopes = torch.func.jacrev(run, argnums=(0, 1))(*clean)
    targets = [(place, *pair) for place, each in enumerate(model.active) for pair in enumerate(each.latent_P)]
    W = model.lm.model.lm_head.weight
    rows = []
    for place, pair, latent in [*targets, *((4, None, token) for token in model.tokens_T)]:
        if pair is None:
            vector, at = W[latent] - W.mean(0), ()
        else:
            sae = model.sites[place].dictionary.sae
            vector, at = sae.W_enc_FD[latent], (int(model.active[place].position_P[pair]),)
        to_tokens, to_written = slopes[place]
        grads = [torch.einsum("d,dsi->si", vector, each[at]) for each in to_written]
        parts = [
            active.code_P * (grad[active.position_P] * site.dictionary.W_dec[active.latent_P]).sum(1)
            for active, grad, site in zip(model.active, grads, model.sites, strict=True)
        ]
        errors = [(grad * error).sum(1) for grad, error in zip(grads, model.errors, strict=True)]
        token = (torch.einsum("d,dsi->si", vector, to_tokens[at]) * clean[0]).sum(1)
        rows.append(torch.cat([*parts, *errors, token]))
    return torch.stack(rows)


def test_rows_are_those_of_a_llama_written_by_hand():
    model = replacement("llama", size=6)
    with torch.no_grad():
        expected = by_hand(model)
    found = all_rows(model)
    # Its own norms and softmax compute in float32.
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
    assert float(expected.abs().max()) > 1


@pytest.mark.parametrize(
    "kind",
    ["qwen3_next", *(pytest.param(k, marks=pytest.mark.long) for k in ("lfm2_moe", "jamba", "falcon_h1"))],
)
def test_what_is_not_linear_is_refused(kind):
    lm = small_model(kind)
    with pytest.raises(ConfigError, match="no graph can be drawn"):
        trace(transcoders(lm, kind), lm, prompt())


@pytest.mark.parametrize("thawed", ["norms", "patterns"])
def test_a_freeze_that_does_not_hold_is_seen(thawed):
    model = replacement("llama")
    if thawed == "norms":
        model.clean.frozen.norms.popitem()
    else:
        model.clean.frozen.patterns[1] = model.clean.frozen.patterns[0]
    with pytest.raises(ConfigError, match="is not linear|computes something else"):
        check_linear(model)
