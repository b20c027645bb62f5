"""Latents ranked by gradient and by removing them, against finite differences and brute force."""

import json

import numpy as np
import pytest
import torch

from sae_dist.commands.ablate import table
from sae_dist.interpret.ranking import as_json, metric, predictions, ranking, removed, with_targets
from tests.helpers.dictionaries import dense_codes
from tests.helpers.planted import LATENTS, PLANTED, TOKEN, planted, prompts


@pytest.fixture(scope="module")
def model():
    return planted(torch.float64)


@pytest.fixture(scope="module")
def asked():
    return prompts(16, target=(TOKEN,))


def with_delta(lm, prompt, delta) -> float:
    """The metric of one prompt, with a change of the hook's activations."""
    hook = lm.base.layers[1].register_forward_hook(lambda _m, _i, out: out + delta)
    try:
        return float(metric(lm(input_ids=torch.tensor([prompt.ids])).logits[:, -1], [prompt]))
    finally:
        hook.remove()


def codes_of(dictionary, lm, prompt) -> torch.Tensor:
    seen = {}
    hook = lm.base.layers[1].register_forward_hook(lambda _m, _i, out: seen.update(x=out[0]))
    lm(input_ids=torch.tensor([prompt.ids]))
    hook.remove()
    return dense_codes(dictionary.sae, seen["x"])


def test_gradient_times_code_is_the_finite_difference(model, asked):
    dictionary, lm, _ = model
    predicted, count = predictions(dictionary, lm, asked[:1])
    code = codes_of(dictionary, lm, asked[0])
    assert count.tolist() == (code > 0).any(0).double().tolist() and 5 < count.sum() < LATENTS
    for latent in np.flatnonzero(count):
        delta = 1e-4 * code[:, latent, None] * dictionary.W_dec[latent]
        slope = (with_delta(lm, asked[0], -delta) - with_delta(lm, asked[0], delta)) / 2e-4
        assert predicted[latent] == pytest.approx(slope, rel=1e-3, abs=1e-8)


def test_removing_a_latent_is_brute_force(model, asked):
    dictionary, lm, _ = model
    _, effect = removed(dictionary, lm, asked, range(LATENTS))
    for row, prompt in enumerate(asked[:4]):
        code = codes_of(dictionary, lm, prompt)
        clean = with_delta(lm, prompt, 0.0)
        for latent in range(LATENTS):
            delta = -code[:, latent, None] * dictionary.W_dec[latent]
            expected = with_delta(lm, prompt, delta) - clean
            assert effect[row, latent] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_planted_latent_is_first(model):
    dictionary, lm, _ = model
    found = ranking(dictionary, lm, prompts(64), top=5, candidates=20, draws=4)
    first = found.rows[0]
    assert first.latent == PLANTED and first.exact < 0 and first.predicted < 0
    assert first.marked and first.upper < first.control[0] and first.adjusted < 0.01
    assert len(found.rows) == 5 and found.sign > 0.8 and found.rank > 0.8
    assert np.all(np.diff([abs(each.exact) for each in found.rows]) <= 0)
    lines = table(found).splitlines()
    assert lines[4].split()[:2] == [str(PLANTED), str(first.prompts)] and lines[4].endswith(" *")
    assert json.loads(json.dumps(as_json(found), allow_nan=False))["rows"][0]["latent"] == PLANTED


def test_without_a_target_the_models_own_next_token_counts(model):
    _, lm, _ = model
    (own,) = with_targets(lm, prompts(1, target=()))
    assert own.target == (int(lm(input_ids=torch.tensor([own.ids])).logits[0, -1].argmax()),)


def test_against_another_token(model):
    dictionary, lm, _ = model
    (one,) = prompts(1, against=(9,))
    logit = lm(input_ids=torch.tensor([one.ids])).logits[:, -1]
    assert float(metric(logit, [one])) == pytest.approx(float(logit[0, TOKEN] - logit[0, 9]))
