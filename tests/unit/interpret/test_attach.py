"""A dictionary attached to a model: nothing changes without an edit, and edits and gradients are exact."""

import pytest
import torch

import sae_dist as sd
from sae_dist.core.errors import ConfigError
from tests.helpers.dictionaries import KINDS
from tests.helpers.in_use import causal, dictionary, tokens
from tests.helpers.tiny_llms import EMBEDDED, TinyLlms

FAMILIES = ("gpt2", "gpt_neox", "llama", "gemma2", "mistral", "opt")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


@pytest.fixture(scope="module")
def llama(tiny):
    return causal(tiny("llama"))


@pytest.fixture
def gpt2(tiny):
    """A model that computes in float64 throughout."""
    return causal(tiny("gpt2"))


def double(d):
    return d.to(dtype=torch.float64)


def hooks_of(lm) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in lm.modules())


def hidden(lm, ids, layer=1):
    """What reaches the layer after the given one [N, S, D]: hooks on that one have acted."""
    seen = []

    def note(_module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    layers = lm.base_model.h if hasattr(lm.base_model, "h") else lm.base_model.layers
    handle = layers[layer + 1].register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            lm(ids)
    finally:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_watching_changes_no_bit(tiny, family, dtype):
    lm, ids = causal(tiny(family), dtype), tokens()
    clean = lm(ids).logits
    with dictionary().attach(lm) as a:
        assert torch.equal(lm(ids).logits, clean)
        with torch.no_grad():
            assert torch.equal(lm(ids).logits, clean)
    assert torch.equal(lm(ids).logits, clean) and hooks_of(lm) == 0
    assert len(a.history) == 2 and a.codes.leading == (2, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_the_untouched_models_activations(llama, kind):
    d, ids = double(dictionary(kind)), tokens()
    with torch.no_grad(), d.attach(llama) as a:
        llama(ids)
    expected = d.encode(hidden(llama, ids))
    assert torch.equal(a.codes.dense(), expected.dense())
    rebuilt = d.decode(a.codes).view(-1, d.width)
    assert torch.allclose(rebuilt + a.error, hidden(llama, ids).view(-1, d.width), atol=1e-12)


def test_left_padded_sequences_have_the_codes_that_they_have_alone(llama):
    d = double(dictionary())
    lm = sd.model(d, llama)
    texts = [tokens((5,), 1).tolist(), tokens((11,), 2).tolist()]
    with torch.no_grad(), d.attach(lm) as a:
        lm(**lm.batch(texts))
        together = a.codes
        for row, text in enumerate(texts):
            lm(lm.ids(text)[None])
            alone = a.codes.dense()[0]
            assert torch.allclose(together.dense()[row, 11 - len(text) :], alone, atol=1e-9)
    assert int(together.l0[0, :6].sum()) == 0


def test_ablation_acts_though_the_error_is_kept(llama):
    d, ids = double(dictionary()), tokens()
    clean = hidden(llama, ids)
    codes = d.encode(clean)
    latent = int(codes.latents[3])
    with torch.no_grad(), d.attach(llama, edit={latent: sd.ablate()}) as a:
        changed = hidden(llama, ids)
    expected = clean - codes.of_latent(latent)[..., None] * d.W_dec[latent]
    assert torch.allclose(changed, expected, atol=1e-12) and not torch.allclose(changed, clean)
    assert torch.equal(a.codes.dense(), codes.dense())


@pytest.mark.parametrize("kind", KINDS)
def test_edits_are_the_formula(llama, kind):
    d, ids = double(dictionary(kind)), tokens()
    clean = hidden(llama, ids)
    dense = d.encode(clean).dense()
    edit = {5: sd.clamp(1.5), 9: sd.add(0.5), 17: sd.ablate(), 18: sd.mean(0.25)}
    with torch.no_grad(), d.attach(llama, edit=edit, positions="every"):
        changed = hidden(llama, ids)
    wanted = dense.clone()
    wanted[..., 5], wanted[..., 17], wanted[..., 18] = 1.5, 0, 0.25
    wanted[..., 9] += 0.5
    assert torch.allclose(changed, clean + (wanted - dense) @ d.W_dec, atol=1e-10)


def test_without_all_codes_error_and_bias_the_activations_are_zero(llama):
    d, ids = double(dictionary()), tokens()
    how = {"error": False, "bias": False, "edit": sd.ablate()}
    with torch.no_grad(), d.attach(llama, **how):
        changed = hidden(llama, ids)
    assert changed.abs().max() < 1e-12


def test_the_reconstruction_takes_the_place_of_ordinary_tokens_only(llama):
    d, ids = double(dictionary()), tokens()
    ids[:, 0] = 0  # a special token
    clean = hidden(llama, ids)
    lm = sd.model(d, llama)
    assert 0 in lm.special_ids
    with torch.no_grad(), d.attach(lm, error=False):
        changed = hidden(llama, ids)
    assert torch.equal(changed[:, 0], clean[:, 0])
    assert torch.allclose(changed[:, 1:], d(clean)[:, 1:], atol=1e-12)


def metric(lm, ids):
    return lm(ids).logits[:, -1, 7].sum()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_codes_and_error_are_finite_differences(gpt2, kind):
    d, ids = double(dictionary(kind)), tokens()
    with d.attach(gpt2) as a:
        metric(gpt2, ids).backward()
    codes, step = a.codes, 1e-6
    for number in (0, len(codes.latents) // 2):
        latent, row = int(codes.latents[number]), int(codes.rows[number])
        at = torch.zeros(24, dtype=torch.bool)
        at[row] = True
        moved = []
        for sign in (1, -1):
            edit = {latent: sd.add(sign * step)}
            with torch.no_grad(), d.attach(gpt2, edit=edit, positions=at.view(2, 12)):
                moved.append(metric(gpt2, ids))
        slope = (moved[0] - moved[1]) / (2 * step)
        assert float(slope) == pytest.approx(float(codes.values.grad[number]), rel=1e-3, abs=1e-9)
    # Along the decoder row the error's gradient is the code's.
    assert torch.allclose((a.error.grad[codes.rows] * d.W_dec[codes.latents]).sum(1), codes.values.grad)


def test_earlier_layers_get_the_gradient_of_the_untouched_model(gpt2):
    ids, table = tokens(), gpt2.get_input_embeddings().weight
    metric(gpt2, ids).backward()
    expected, table.grad = table.grad, None
    gpt2.zero_grad()
    with double(dictionary()).attach(gpt2):
        metric(gpt2, ids).backward()
    assert torch.equal(table.grad, expected)
    gpt2.zero_grad()


def test_without_the_error_gradients_flow_through_the_codes(gpt2):
    d, ids = double(dictionary("relu")), tokens((1, 6))
    embeds = gpt2.get_input_embeddings()(ids).detach().requires_grad_()
    with d.attach(gpt2, error=False, positions="every") as a:
        loss = gpt2(inputs_embeds=embeds).logits[:, -1, 7].sum()
        loss.backward()
        assert a.codes.values.grad.abs().sum() > 0
        direction, step = torch.randn_like(embeds), 1e-6
        with torch.no_grad():
            ends = [gpt2(inputs_embeds=embeds + s * step * direction).logits[:, -1, 7].sum() for s in (1, -1)]
    slope = float((ends[0] - ends[1]) / (2 * step))
    assert slope == pytest.approx(float((embeds.grad * direction).sum()), rel=1e-3)


def test_several_dictionaries_at_once(llama):
    first, second = double(dictionary(hook="layers.0")), double(dictionary("relu", hook="layers.2"))
    ids = tokens()
    clean = llama(ids).logits
    with first.attach(llama) as a, second.attach(llama) as b:
        logits = llama(ids).logits
        logits[:, -1, 7].sum().backward()
    assert torch.equal(logits, clean)
    assert torch.equal(a.codes.dense(), first.encode(hidden(llama, ids, 0)).dense())
    assert torch.equal(b.codes.dense(), second.encode(hidden(llama, ids, 2)).dense())
    assert a.codes.values.grad.abs().sum() > 0 and b.codes.values.grad.abs().sum() > 0
    llama.zero_grad()


@pytest.mark.parametrize("form", ["transcoder", "skip"])
def test_a_transcoder_is_spliced_at_its_target(tiny, form):
    lm, ids = causal(tiny("llama")), tokens()
    d = double(dictionary("relu", form, hook="layers.1.mlp:in"))
    seen = {}
    handle = lm.model.layers[1].mlp.register_forward_hook(
        lambda _module, args, out: seen.update(x=args[0].detach(), y=out.detach())
    )
    clean = lm(ids).logits
    handle.remove()
    with d.attach(lm) as a:
        assert torch.equal(lm(ids).logits, clean)
    assert torch.equal(a.codes.dense(), d.encode(seen["x"]).dense())
    assert torch.allclose(d.decode(a.codes, seen["x"]).view(24, -1) + a.error, seen["y"].view(24, -1))


def test_everything_is_removed_after_an_exception(llama):
    d = double(dictionary())
    with pytest.raises(ZeroDivisionError), d.attach(llama):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="must match"), d.attach(llama):
        llama(inputs_embeds=torch.zeros(1, 3, 7))
    assert hooks_of(llama) == 0


def test_generation_sees_each_token_once(llama):
    d = double(dictionary())
    ids = tokens((1, 5))
    for cached in (True, False):
        with torch.no_grad(), d.attach(llama) as a:
            llama.generate(ids, max_new_tokens=4, do_sample=False, use_cache=cached, pad_token_id=0)
        lengths = [len(each) for each in a.history]
        assert lengths == ([5, 1, 1, 1] if cached else [5, 6, 7, 8])
        last = a.history[-1].dense()[0, -1]
        if cached:
            kept = last
    assert torch.allclose(kept, last, atol=1e-9)


def test_an_encoder_is_attached_to(tiny):
    d = dictionary(hook="encoder.layer.1")
    from transformers import AutoModel

    lm = AutoModel.from_pretrained(tiny("bert")).eval()
    ids = tokens()
    clean = lm(ids).last_hidden_state
    with d.attach(lm) as a:
        assert torch.equal(lm(ids).last_hidden_state, clean)
    assert int(a.codes.l0.sum()) > 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"hook": "layers.9"}, "hook=layers.9 names no module of this model, which has 4 layers"),
        ({"hook": "layers.1.nothing"}, "hook=layers.1.nothing names no module"),
        ({"D": 48}, "width 32, the dictionary is for 48"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(llama, how, message):
    d = double(dictionary(**how))
    with pytest.raises(ConfigError, match=message) as error, d.attach(llama):
        llama(tokens())
    assert "\n" not in str(error.value) and hooks_of(llama) == 0


def test_another_model_by_name_is_refused_unless_forced(llama):
    d = double(dictionary())
    d.place.said["model_name"] = "organisation/another"
    with pytest.raises(ConfigError, match="trained on organisation/another"):
        d.attach(llama)
    with d.attach(llama, force=True):
        llama(tokens())


def test_a_dictionary_that_does_not_say_its_hook_is_refused(llama):
    with pytest.raises(ConfigError, match="does not say its hook"):
        dictionary(hook=None).attach(llama)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda lm: torch.compile(lm),
        lambda lm: lm.compile() or lm,
        lambda lm: lm.model.layers[2].compile() or lm,
        lambda lm: setattr(lm.model.layers, "1", torch.compile(lm.model.layers[1])) or lm,
        lambda lm: setattr(lm, "forward", torch.compile(lm.forward)) or lm,
    ],
    ids=["wrapped", "in place", "a layer in place", "a layer", "its forward"],
)
def test_a_compiled_model_is_refused(tiny, wrap):
    lm = wrap(causal(tiny("llama"), torch.float32))
    with pytest.raises(ConfigError, match="wrapped by torch.compile"):
        dictionary().attach(lm)


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigError, match="a str is no model of transformers"):
        dictionary().attach("gpt2")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({200: sd.ablate()}, "latent 200 does not exist"),
        ({1: 4.0}, "4.0 is no intervention"),
        ({1: sd.project_out()}, "use d.steer"),
        (sd.clamp(1.0), "only ablate"),
        ({1: sd.clamp("4x")}, "measure them first"),
    ],
)
def test_an_edit_that_means_nothing_is_refused(llama, edit, message):
    with pytest.raises(ConfigError, match=message):
        dictionary().attach(llama, edit=edit)


def test_the_embedded_model_is_there_with_its_tokenizer():
    d = dictionary(D=256, hook="layers.1")
    lm = sd.model(d, "embedded")
    ids = lm.ids("def f(x):")
    assert ids[0] == lm.prefix[0] and lm.name == "embedded"
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(lm(ids[None]).logits, plain(ids[None]).logits)
