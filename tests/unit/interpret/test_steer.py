"""Steering moves activations along the named latents by exactly what the formulas say, and nothing else."""

import warnings

import pytest
import torch

import sae_dist as sd
from sae_dist.core.errors import ConfigError
from sae_dist.export.statistics import CodeStatistics
from sae_dist.interpret import encoding
from tests.helpers.dictionaries import KINDS
from tests.helpers.in_use import causal, dictionary, tokens
from tests.helpers.tiny_llms import TinyLlms
from tests.unit.interpret.test_attach import FAMILIES, hidden, hooks_of


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


@pytest.fixture(scope="module")
def lm(tiny):
    return causal(tiny("gpt2"))


def double(kind="topk", **how):
    return dictionary(kind, **how).to(dtype=torch.float64)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the change is")
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_no_intervention_changes_no_bit(tiny, family):
    model, ids = causal(tiny(family), torch.bfloat16), tokens()
    clean = model(ids).logits
    with dictionary().steer(model, {}) as s:
        assert torch.equal(model(ids).logits, clean)
    assert s.intervened == 0 and hooks_of(model) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_is_that_of_the_whole_codes(lm, kind):
    d, ids = double(kind), tokens()
    clean = hidden(lm, ids)
    codes = d.encode(clean)
    dense = codes.dense()
    fires = int(codes.latents.mode().values)
    how = {5: sd.clamp(1.5), 9: sd.add(0.5), fires: sd.ablate(), 18: sd.mean(0.25)}
    with d.steer(lm, how) as s:
        changed = hidden(lm, ids)
    wanted = dense.clone()
    wanted[..., 9] += 0.5
    wanted[..., 5], wanted[..., fires], wanted[..., 18] = 1.5, 0, 0.25
    assert (dense[..., fires] > 0).any()
    assert torch.allclose(changed, clean + (wanted - dense) @ d.W_dec, atol=1e-10)
    assert s.intervened == 24 and s.largest > 0


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
def test_the_change_is_that_of_encoding_editing_and_decoding_everything(lm, kind):
    d, ids = double(kind), tokens()
    clean = hidden(lm, ids)
    edited = d.encode(clean).dense()
    edited[..., 5] = 2.0
    whole = (clean - d(clean)) + edited @ d.W_dec + d.b_dec
    with d.steer(lm, {5: sd.clamp(2.0)}):
        assert torch.allclose(hidden(lm, ids), whole, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_clamped_to_its_own_value_changes_nothing(lm, kind):
    d, ids = double(kind), tokens((1, 9))
    codes = d.encode(hidden(lm, ids)).dense()[0]
    for place, latent in (codes > 0).nonzero()[:6].tolist():
        at = torch.arange(9)[None] == place
        with d.steer(lm, {latent: sd.clamp(float(codes[place, latent]))}, positions=at) as s:
            changed = hidden(lm, ids)
        assert (changed - hidden(lm, ids)).abs().max() < 1e-6 and s.intervened == 1


def test_projecting_out_leaves_nothing_along_the_row(lm):
    d, ids = double(), tokens()
    clean = hidden(lm, ids)
    with d.steer(lm, {5: sd.project_out()}):
        changed = hidden(lm, ids)
    unit = d.W_dec[5] / d.W_dec[5].norm()
    assert (changed @ unit).abs().max() < 1e-10
    assert torch.allclose(changed, clean - (clean @ unit)[..., None] * unit, atol=1e-10)


def test_topk_may_select_again(lm):
    d, ids = double(k=4), tokens()
    clean = hidden(lm, ids)
    # What was not selected may take the place of an ablated latent only if it is among the k before.
    old = d.encode(clean).dense()
    wanted = old.clone()
    wanted[..., 5], wanted[..., 9] = 1.2, 0.0
    kept = wanted.topk(4)
    wanted = torch.zeros_like(wanted).scatter(-1, kept.indices, kept.values)
    with d.steer(lm, {5: sd.clamp(1.2), 9: sd.ablate()}, again=True):
        changed = hidden(lm, ids)
    assert torch.allclose(changed, clean + (wanted - old) @ d.W_dec, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_is_generation_without(tiny, family):
    model, d = causal(tiny(family)), double()
    ids = tokens((1, 6))
    found, counts = [], []
    for cached in (True, False):
        with d.steer(model, {5: sd.clamp(6.0)}, positions="every") as s:
            how = {"do_sample": False, "use_cache": cached, "pad_token_id": 0}
            found.append(model.generate(ids, max_new_tokens=6, **how))
        counts.append(s.intervened)
    assert torch.equal(found[0], found[1])
    assert counts == [6 + 5, 6 + 7 + 8 + 9 + 10 + 11]
    assert not torch.equal(found[0], model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("positions", "places"),
    [
        ("every", range(9)),
        ("all", range(1, 9)),
        ("prompt", range(1, 6)),
        ("generated", range(6, 9)),
        ("last", [5]),
        (2, [2]),
        ([0, -1], [0, 5]),
        (range(3, 5), [3, 4]),
        (lambda forward: forward.place_NS % 2 == 1, [1, 3, 5, 7]),
    ],
)
def test_the_named_positions_are_changed_each_once(lm, positions, places, cached):
    d = double()
    model = sd.model(d, lm)
    ids = tokens((1, 6))
    ids[0, 0] = 0  # a special token
    seen = {}

    def note(_module, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        first = len(seen) if cached else 0
        seen.update({first + n: row for n, row in enumerate(x[0])})

    rows = []
    for steered in (False, True):
        seen.clear()
        handle = lm.transformer.h[2].register_forward_pre_hook(note, with_kwargs=True)
        with d.steer(model, {5: sd.add(1e-3)} if steered else {}, positions=positions):
            how = {"do_sample": False, "use_cache": cached, "pad_token_id": 0}
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, **how)
        handle.remove()
        rows.append(torch.stack([seen[n] for n in range(9)]))
    # The latent's row itself arrives at the places that are meant; elsewhere no more than what they pass on.
    moved = ((rows[1] - rows[0]) @ d.W_dec[5]) / 1e-3
    assert (moved > 0.9).nonzero().flatten().tolist() == list(places)


def test_left_padded_prompts_are_steered_as_they_are_alone(lm):
    d = double()
    model = sd.model(d, lm)
    texts = [tokens((5,), 1).tolist(), tokens((11,), 2).tolist()]
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for positions in ("all", "generated", "last", [1, -2]):
        with d.steer(model, {5: sd.clamp(5.0)}, positions=positions) as s:
            together = model.generate(**model.batch(texts), **how)[:, -5:]
        counted = s.intervened
        alone, count = [], 0
        for text in texts:
            with d.steer(model, {5: sd.clamp(5.0)}, positions=positions) as s:
                alone.append(model.generate(model.ids(text)[None], **how)[0, -5:])
            count += s.intervened
        assert torch.equal(together, torch.stack(alone)) and counted == count


def test_a_dictionary_larger_than_memory_steers_by_a_threshold_and_says_so(lm, monkeypatch):
    monkeypatch.setattr(encoding, "IN_MEMORY", 0.0)
    d, ids = double(), tokens()
    with pytest.warns(UserWarning, match="does not fit into memory: a score counts as selected above 0"):
        steered = d.steer(lm, {5: sd.clamp(2.0)})
    clean = hidden(lm, ids)
    with steered:
        changed = hidden(lm, ids)
    score = ((clean - d.b_dec) @ d.W_enc[:, 5] + d.b_enc[5]).relu()
    assert torch.allclose(changed, clean + (2.0 - score)[..., None] * d.W_dec[5], atol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d.steer(lm, {5: sd.add(1.0)})  # needs no code
    with pytest.raises(ConfigError, match="again=True needs the whole dictionary"):
        d.steer(lm, {5: sd.clamp(2.0)}, again=True)


def measured(d):
    one = torch.ones(d.num_latents)
    d.place.measured = CodeStatistics(0.5 * one, 2 * one, 3 * one, 4 * one, 0.7, 100)
    d.place.measured.p999_F[7] = 0
    return d


def test_doses_are_multiples_of_what_was_measured(lm):
    d = measured(double())
    s = d.steer(lm, {5: sd.clamp("2x"), 6: sd.add("-0.5x"), 8: sd.mean()})
    assert [each.value for each in s.interventions.values()] == [6.0, -1.5, 1.0]
    with pytest.raises(ConfigError, match="latent 7 never fired on 100 rows"):
        d.steer(lm, {7: sd.clamp("2x")})
    with pytest.raises(ConfigError, match=r'clamp\("2x"\) needs the latent\'s usual codes'):
        double().steer(lm, {5: sd.clamp("2x")})


def test_a_large_change_is_remarked_on_once(lm):
    d, ids = double(), tokens()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with d.steer(lm, {5: sd.clamp(1e3)}) as s:
            lm(ids)
            lm(ids)
    assert sum(str(each.message).startswith("the change is") for each in found) == 1 and s.largest > 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x", "nanx", "4y", None, True, [1]])
@pytest.mark.parametrize("how", [sd.clamp, sd.add])
def test_a_dose_that_is_no_number_is_refused(how, value):
    with pytest.raises(ConfigError, match="the dose must be a finite number"):
        how(value)


@pytest.mark.parametrize(
    ("interventions", "how", "message"),
    [
        ({200: sd.ablate()}, {}, "latent 200 does not exist; the latents are 0 to 199"),
        ({5: 4.0}, {}, "4.0 is no intervention"),
        ({5: sd.ablate()}, {"positions": "everywhere"}, "positions=everywhere is none of all, every"),
        ({5: sd.ablate()}, {"positions": torch.ones(3, 3, dtype=torch.bool)}, r"mask of shape \[3, 3\]"),
    ],
)
def test_bad_input_is_one_line(lm, interventions, how, message):
    with pytest.raises(ConfigError, match=message) as error:
        with double().steer(lm, interventions, **how):
            lm(tokens())
    assert "\n" not in str(error.value) and hooks_of(lm) == 0


def test_selecting_again_is_for_topk(lm):
    with pytest.raises(ConfigError, match="again=True is for topk"):
        double("relu").steer(lm, {5: sd.ablate()}, again=True)
