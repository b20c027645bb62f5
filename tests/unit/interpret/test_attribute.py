"""Codes by what they do to the next token: against attached dictionaries and finite differences."""

import json

import numpy as np
import pytest
import torch

import sae_dist as sd
from sae_dist.core.errors import ConfigError
from sae_dist.interpret.attribute.attribute import attribute
from sae_dist.interpret.attribute.certificate import NODES
from tests.helpers.dictionaries import FORMS, KINDS
from tests.helpers.in_use import causal, dictionary, tokens
from tests.helpers.planted import PLANTED, TOKEN, planted, prompts
from tests.helpers.tiny_llms import TinyLlms

BOS, TARGET, AGAINST = 0, 7, 9


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


@pytest.fixture(scope="module")
def llama(tiny):
    """A model whose tokenizer has a special token before every text."""
    return causal(tiny("llama"))


def double(kind="relu", form="autoencoder", **shape):
    hook = "layers.1" if form == "autoencoder" else "layers.1.mlp:in"
    return dictionary(kind, form, hook=hook, **shape).to(dtype=torch.float64)


def text_ids(length=9):
    return [BOS, *tokens((length,)).tolist()]


def difference(lm, ids):
    logit_V = lm(input_ids=torch.tensor([ids])).logits[0, -1]
    return logit_V[TARGET] - logit_V[AGAINST]


METRIC = sd.logit_diff(TARGET, AGAINST)
CASES = [(kind, "autoencoder") for kind in KINDS] + [("relu", form) for form in FORMS[1:]]


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_effects_are_the_gradients_of_an_attached_dictionary(llama, kind, form):
    d, ids = double(kind, form), text_ids()
    found = d.attribute(llama, ids, metric=METRIC, exact=3)
    with d.attach(llama) as a:
        difference(llama, ids).backward()
    codes = a.codes
    expected = {
        (row, latent): value * grad
        for row, latent, value, grad in zip(
            codes.rows.tolist(),
            codes.latents.tolist(),
            codes.values.tolist(),
            codes.values.grad.tolist(),
            strict=True,
        )
        if row > 0  # the special token does not count
    }
    seen = found.codes_seen
    got = dict(zip(zip(seen["position"], seen["latent"], strict=True), seen["effect"], strict=True))
    assert got.keys() == expected.keys() and len(got) > 10
    assert all(got[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-12) for key in got)
    assert np.all(np.diff(np.abs(seen["effect"])) <= 0)
    error = (a.error.grad * a.error).sum(1).tolist()
    assert found.tokens_seen["error_effect"][1:] == pytest.approx(error[1:], rel=1e-9)
    assert found.tokens_seen["error_effect"][0] == found.tokens_seen["effect"][0] == 0
    llama.zero_grad()


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_removals_are_those_of_an_attached_dictionary(llama, kind, form):
    d, ids = double(kind, form), text_ids()
    found = d.attribute(llama, ids, metric=METRIC, exact=6)
    seen = found.codes_seen
    with torch.no_grad():
        clean = float(difference(llama, ids))
        for row in range(6):
            edit = {seen["latent"][row]: sd.ablate()}
            with d.attach(llama, edit=edit, positions=[seen["position"][row]]):
                lost = clean - float(difference(llama, ids))
            assert seen["exact"][row] == pytest.approx(lost, rel=1e-8, abs=1e-10)
    assert seen["exact"][6:] == [None] * (len(seen["exact"]) - 6)
    assert found.certificate.clean == pytest.approx(clean, rel=1e-12)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_parts_add_up_to_what_is_lost_without_codes_and_error(llama, kind, form):
    d, ids = double(kind, form), text_ids()
    found = d.attribute(llama, ids, metric=METRIC, exact=0)
    c = found.certificate
    # Without the error and with every code at 0: what attach leaves, at all but the special token.
    with torch.no_grad(), d.attach(llama, error=False, edit=sd.ablate()):
        without = float(difference(llama, ids))
    assert c.without == pytest.approx(without, rel=1e-9)
    assert c.complete and abs(c.latents + c.error - c.lost) == found.complete_to < 1e-3 * abs(c.lost)
    assert sum(found.codes_seen["along"]) == pytest.approx(c.latents)
    assert sum(found.tokens_seen["error_along"]) == pytest.approx(c.error)
    assert sum(found.tokens_seen["along"]) == pytest.approx(c.latents)


def test_gauss_legendre_nodes_are_exact_for_polynomials():
    """A metric that is a polynomial of the logits of a linear head: the parts add up to rounding."""
    d, lm, _ = planted(torch.float64)
    lm.model.model.norm = torch.nn.Identity()
    ids = list(prompts(1)[0].ids)
    found = d.attribute(lm, ids, metric=lambda logits: logits[:, 5] ** 3 - logits[:, 6] ** 2, exact=2)
    assert (
        found.complete_to < 1e-10 * max(1, abs(found.certificate.lost)) and found.certificate.nodes == NODES
    )
    assert abs(found.certificate.lost) > 1e-3


def test_gradients_are_finite_differences(llama):
    found = double("topk").attribute(llama, text_ids(), metric=METRIC, exact=0)
    assert found.differences.codes == 10
    assert 0 < found.differences.median < 1e-3 and found.differences.worst < 1e-2


def test_the_planted_latent_is_first_and_beyond_controls():
    d, lm, _ = planted(torch.float64)
    ids = list(prompts(1)[0].ids) * 3
    found = d.attribute(lm, ids, metric=sd.logit(TOKEN), exact=25)
    seen = found.codes_seen
    last = max(seen["position"])
    own = [
        row for row, each in enumerate(seen["latent"]) if each == PLANTED and seen["position"][row] == last
    ]
    if own:
        assert own == [0] and seen["beyond_controls"][0] and seen["exact"][0] > 0
    assert found.shown.rank > 0.8 and found.shown.sign > 0.8
    assert found.random.controls >= 50 and 0 < found.random.reach < 1
    assert found.latents_seen["latent"][0] == seen["latent"][0]


def test_controls_are_others_and_of_the_same_size(llama, monkeypatch):
    from sae_dist.interpret.attribute import attribute as module

    asked = []
    real = module.lost
    monkeypatch.setattr(module, "lost", lambda f, q, changes: asked.append(changes) or real(f, q, changes))
    found = double("topk").attribute(llama, text_ids(), metric=METRIC, exact=20)
    shown, equal, random = asked
    places = [[(int(at[0]), row.norm().item()) for at, row in each] for each in (shown, equal, random)]
    assert len(places[0]) == len(places[1]) == 20 and len(places[2]) == 60 == found.random.controls
    for row, (at, size) in enumerate(places[2]):
        assert at == places[0][row % 20][0] and size == pytest.approx(places[0][row % 20][1])
    assert not set(places[0]) & set(places[1]), "a control is a code that is not shown"


def test_no_direction_of_a_codes_size_does_more_than_the_steepest(llama):
    """To first order: codes a thousandth as large, of a dictionary that is as much smaller."""
    d = double("relu")
    d.sae.W_dec_FE.mul_(1e-4)
    found = d.attribute(llama, text_ids(), metric=METRIC, exact=30)
    assert 0.2 < found.random.reach < 0.6, "of directions in 32 dimensions 95 % are within .35"
    seen = found.codes_seen
    assert found.equal.reach is not None
    for row in range(30):
        assert seen["beyond_controls"][row] == (abs(seen["exact"][row]) > seen["controls"][row])
    assert len(set(seen["controls"][:30])) > 5


def test_latents_as_frequent_are_the_nearest_by_rate():
    from sae_dist.interpret.attribute.controls import equally_rare

    usual = np.array([0.1, 0.5, 0.11, 0.49, 0.9, 0.001])
    assert equally_rare(usual, np.array([0, 1]), 0).tolist() == [2, 3]
    assert equally_rare(usual, np.arange(6), 0).tolist() == []
    assert len(equally_rare(usual, np.arange(4), 0)) == 2


def test_a_bound_holds_95_percent_of_further_controls():
    from sae_dist.interpret.attribute.controls import Bound

    draw = np.random.default_rng(0)
    beyond = [abs(draw.standard_normal()) > Bound.of(draw.standard_normal(20)).reach for _ in range(2000)]
    assert 0.03 < np.mean(beyond) < 0.07
    assert Bound.of(np.zeros(18)).reach is None


def test_more_can_be_removed_afterwards(llama):
    found = double("topk").attribute(llama, text_ids(), metric=METRIC, exact=2)
    more = found.check(exact=12)
    assert more.codes_seen["exact"][:2] == pytest.approx(found.codes_seen["exact"][:2])
    assert more.shown.codes == 12 and more.codes_seen["exact"][11] is not None
    assert more.codes_seen["effect"] == found.codes_seen["effect"]
    assert found.equal.reach is None and set(found.codes_seen["beyond_controls"]) == {None}
    for wrong in (-1, True, 1.5, 10**9):
        with pytest.raises(ConfigError, match="exact="):
            found.check(exact=wrong)


def test_a_model_in_16_bits_is_computed_in_float32_and_left_alone(tiny):
    half = causal(tiny("gpt2"), torch.bfloat16)
    d = dictionary("relu")
    found = d.attribute(half, text_ids(), metric=METRIC, exact=5)
    assert found.about["dtype"] == "float32" and any("16 bits" in each for each in found.about["notes"])
    assert half.dtype == torch.bfloat16 and found.complete_to < 1e-3 * abs(found.certificate.lost)
    same = d.attribute(causal(tiny("gpt2"), torch.bfloat16).float(), text_ids(), metric=METRIC, exact=5)
    assert found.codes_seen["effect"] == pytest.approx(same.codes_seen["effect"], rel=1e-4, abs=1e-6)
    assert same.about["notes"] != found.about["notes"]


def test_a_dictionary_in_16_bits(llama):
    found = dictionary("relu").to(dtype=torch.bfloat16).attribute(llama, text_ids(), metric=METRIC, exact=3)
    assert found.certificate.complete and found.about["dtype"] == "float64"


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "mistral", "bloom", "opt"])
def test_other_architectures(tiny, family):
    lm = causal(tiny(family))
    found = double("topk").attribute(lm, text_ids(), metric=METRIC, exact=4)
    # OPT's ReLU has kinks on the way, and that is said.
    smooth = family != "opt"
    assert found.certificate.complete == smooth and ("do not add up" in str(found)) != smooth
    assert found.complete_to < 1e-2 * abs(found.certificate.lost) and found.differences.median < 1e-2
    assert sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in lm.modules()) == 0


def test_one_token_and_a_silent_dictionary(llama):
    d = double()
    one = d.attribute(llama, [11], metric=METRIC)
    assert one.about["tokens"] == 1 and one.certificate.complete
    d.sae.b_enc_F.fill_(-1e9)
    silent = d.attribute(llama, text_ids(), metric=METRIC)
    assert silent.codes_seen["latent"] == [] and silent.shown.codes == 0 and silent.certificate.latents == 0
    assert silent.certificate.error_leads and "explains little" in str(silent)
    assert json.loads(silent.to_json())["differences"]["median"] is None and silent.to_html()
    assert silent.table.num_rows == silent.latents.num_rows == 0


def test_a_tokenizers_text_and_the_models_own_choice(llama):
    lm = sd.model(dictionary(), llama)
    d = double()
    own = d.attribute(lm, "def add(a, b):", exact=0)
    ids = lm.ids("def add(a, b):")
    top = llama(input_ids=ids[None]).logits[0, -1].topk(2)
    assert [own.about[key]["id"] for key in ("target", "against")] == top.indices.tolist()
    assert own.certificate.clean == pytest.approx(float(top.values[0] - top.values[1]), rel=1e-9)
    named = d.attribute(lm, "def add(a, b):", metric=sd.logit(lm.pieces([300])[0]), exact=0)
    assert named.about["target"]["id"] == 300 and named.about["against"] is None
    logit_V = llama(input_ids=ids[None]).logits[0, -1]
    assert named.certificate.clean == pytest.approx(float(logit_V[300] - logit_V.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (sd.logit(" supercalifragilistic"), r"is \d+ tokens: .*id:\d+"),
        (sd.logit(""), "has no tokens"),
        (sd.logit(10**9), "the tokens of"),
        (sd.logit(-1), "the tokens of"),
        (sd.logit(True), "is no token"),
        (sd.logit_diff(7, 7), "always 0"),
        ("logit", "write sd.logit_diff"),
        (lambda logits: logits.sum(), "a number for each row"),
        (lambda logits: logits[:, 3].detach(), "does not depend on"),
        (lambda logits: (-(logits[:, 3] ** 2) - 1).log(), "is nan after this text"),
    ],
)
def test_a_metric_that_is_none_is_refused_in_a_line(llama, metric, message):
    with pytest.raises(ConfigError, match=message) as error:
        double().attribute(llama, "import os", metric=metric)
    assert "\n" not in str(error.value)


def test_what_cannot_be_attributed_is_refused(tiny, llama):
    from transformers import AutoModel

    d = double()
    for text, message in (
        ("", "empty"),
        ([BOS], "special tokens only"),
        (list(range(10, 90)), "reads at most"),
    ):
        with pytest.raises(ConfigError, match=message):
            d.attribute(llama, text)
    with pytest.raises(ConfigError, match="predicts no next token"):
        dictionary(hook="encoder.layer.1").attribute(
            AutoModel.from_pretrained(tiny("bert")).eval(), [5, 11, 12]
        )
    with pytest.raises(ConfigError, match="training mode"):
        d.attribute(causal(tiny("gpt2")).train(), text_ids())
    d.place.said["model_name"] = "organisation/another"
    with pytest.raises(ConfigError, match="trained on organisation/another"):
        attribute(d, llama, text_ids())
    assert attribute(d, llama, text_ids(), exact=0, force=True).about["codes"] > 0
