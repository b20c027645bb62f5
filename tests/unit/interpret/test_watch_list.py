"""A watch list: nothing changes, codes are those of the formula, decisions that differ are counted."""

import pytest
import torch

import sae_dist as sd
from sae_dist.export.saelens import export_saelens
from sae_dist.export.statistics import CodeStatistics
from sae_dist.interpret import encoding, watch
from tests.helpers.dictionaries import KINDS, F, dense_codes, random_sae
from tests.helpers.tiny_llms import save_tiny

NAMED = [1, 3, 8, 17, 22, 30, 39]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    path = save_tiny("llama", tmp_path_factory.mktemp("llama"))
    return AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)


@pytest.fixture
def opened(tmp_path):
    """A function that opens a random dictionary of a kind, at the output of layer 1."""

    def make(kind: str) -> sd.Dictionary:
        sae = random_sae(kind, D=32)
        sae.metadata = {"hook_name": "layers.1", "hf_hook_name": "layers.1:out"}
        export_saelens(tmp_path / kind, sae)
        return sd.load(tmp_path / kind)

    return make


def tokens(N: int, S: int) -> torch.Tensor:
    return torch.randint(6, 2000, (N, S), generator=torch.Generator().manual_seed(N * S))


def by_formula(d: sd.Dictionary, lm, **inputs) -> torch.Tensor:
    """Codes of all latents [N, S, F], from the untouched model's activations."""
    hidden = lm(**inputs, output_hidden_states=True).hidden_states[2]
    return dense_codes(d.sae, hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)


@pytest.mark.parametrize("kind", [each for each in KINDS if each != "topk"])
def test_codes_are_exact_and_the_model_is_as_it_was(opened, llama, kind):
    d, ids = opened(kind), tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    clean = llama(ids, attention_mask=mask).logits
    with d.watch(llama, NAMED) as w:
        assert llama(ids, attention_mask=mask).logits.equal(clean)
    exact = by_formula(d, llama, input_ids=ids, attention_mask=mask)[..., NAMED]
    exact[0, :4] = 0
    assert (exact > 0).any(), "else nothing was tested"
    torch.testing.assert_close(w.codes, exact)
    assert w.disagreement == 0.0 and w.approximate is None and w.threshold is None


def test_each_generated_token_is_seen_once(opened, llama):
    d, ids = opened("relu"), tokens(1, 5)
    with d.watch(llama, NAMED) as w:
        llama.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert [each.shape[1] for each in w.history] == [5, 1, 1, 1]


def test_places_go_on_with_a_cache_in_a_loop_of_ones_own(opened, llama):
    d, ids, at = opened("relu"), tokens(1, 5), []

    def note(forward):
        at.append((forward.place_NS[0].tolist(), forward.prompt_N1[0].tolist()))
        return torch.ones(forward.shape, dtype=torch.bool)

    with d.steer(llama, {3: sd.add(1e-3)}, positions=note):
        cache = llama(ids, use_cache=True).past_key_values
        llama(ids[:, :1], past_key_values=cache)
        llama(ids[:, :1], past_key_values=cache)
    assert at == [([0, 1, 2, 3, 4], [5]), ([5], [5]), ([6], [5])]


def test_other_decisions_of_topk_are_counted(opened, llama):
    d, ids = opened("topk"), tokens(4, 40)
    code = by_formula(d, llama, input_ids=ids)
    given = float(torch.where(code > 0, code, torch.inf).amin(-1).median())
    with d.watch(llama, NAMED, threshold=given) as w:
        llama(ids)
    ours, exact = w.codes > 0, code[..., NAMED] > 0
    assert w.compared == 160 and 0 < w.differ == int((ours != exact).sum())
    assert w.fired == int((ours | exact).sum())
    assert w.disagreement == w.differ / (160 * len(NAMED)) and f"{given:.4g}" in w.approximate
    # A score above the threshold is a code; below, it is none.
    score = d.some(NAMED).scores(llama(ids, output_hidden_states=True).hidden_states[2].flatten(0, 1))
    torch.testing.assert_close(w.codes.flatten(0, 1), torch.where(score > given, score, 0.0).relu())


def test_a_threshold_is_fitted_on_the_first_tokens_whose_codes_are_exact(opened, llama, monkeypatch):
    monkeypatch.setattr(watch, "FITTED_TOKENS", 50)
    d, first, second = opened("topk"), tokens(1, 50), tokens(2, 30)
    with d.watch(llama, NAMED) as w:
        assert w.disagreement is None and "first 50 tokens" in w.approximate
        llama(first)
        assert w.compared == 0, "what it was fitted on says too little"
        llama(second)
    code = by_formula(d, llama, input_ids=first)
    torch.testing.assert_close(w.history[0], code[..., NAMED])
    smallest = torch.where(code > 0, code, torch.inf).amin(-1)
    assert w.threshold == pytest.approx(float(smallest.median()), rel=1e-5)
    assert w.compared == 60


def test_a_threshold_that_was_measured_is_taken(opened, llama):
    d = opened("topk")
    d.place.measured = CodeStatistics(*torch.ones(4, F), threshold=0.25, rows=9)
    assert d.watch(llama, NAMED).threshold == 0.25


def test_of_a_dictionary_too_large_for_memory_nothing_is_compared(opened, llama, monkeypatch):
    monkeypatch.setattr(encoding, "IN_MEMORY", 0.0)
    d = opened("topk")
    with d.watch(llama, NAMED) as w:
        llama(tokens(1, 9))
    assert w.threshold == 0.0 and w.disagreement is None and "no exact selection" in w.approximate


@pytest.mark.parametrize(
    ("kind", "latents", "how", "says"),
    [
        ("topk", [F], {}, "does not exist"),
        ("topk", [], {}, "at least one"),
        ("topk", [1, 1], {}, "each once"),
        ("topk", [1], {"threshold": float("nan")}, "finite"),
        ("topk", [1], {"threshold": -1.0}, "at least 0"),
        ("relu", [1], {"threshold": 1.0}, "exact"),
    ],
)
def test_a_wrong_list_is_refused(opened, llama, kind, latents, how, says):
    with pytest.raises(sd.ConfigError, match=says):
        opened(kind).watch(llama, latents, **how)
