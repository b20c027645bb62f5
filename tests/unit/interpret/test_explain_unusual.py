"""Whether a latent is called unusual: the tail's formula, and how often nothing is mistaken for something."""

import numpy as np
import pytest
import torch
from scipy import stats

from sae_dist.core.errors import ConfigError
from sae_dist.export.statistics import CodeStatistics
from sae_dist.interpret.explaining.unusual import CORRELATIONS, LEVEL, Rates, beta_binomial_tail
from sae_dist.interpret.statistics import holm
from tests.helpers.in_use import dictionary

F, TOKENS, DOCUMENTS = 60, 50, 300


@pytest.mark.parametrize("tokens", [1, 7, 300])
@pytest.mark.parametrize("correlation", [0.01, 0.1, 0.5])
def test_the_tail_is_the_beta_binomial_one(tokens, correlation):
    rate = torch.tensor([1e-6, 1e-3, 0.05, 0.5, 0.99], dtype=torch.float64)
    size = (1 - correlation) / correlation
    for count in {1, 2, tokens // 2, tokens} - {0}:
        found = beta_binomial_tail(torch.full((5,), count), tokens, rate, correlation)
        counts = np.arange(count, tokens + 1)[:, None]
        # Scipy's own tail is one less the rest, which rounds small ones to nothing.
        wanted = stats.betabinom.pmf(counts, tokens, rate.numpy() * size, (1 - rate.numpy()) * size).sum(0)
        assert np.allclose(found, wanted, rtol=1e-6, atol=0)
    assert torch.allclose(
        beta_binomial_tail(torch.zeros(5), tokens, rate, correlation), torch.ones(()).double()
    )


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03], 3).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001], 100).tolist() == pytest.approx([1.0, 0.1])
    assert holm([], 5).tolist() == []


def documents(seed: int, correlation: float) -> torch.Tensor:
    """How often each latent fires in each document [documents, F], each document with rates of its own."""
    draw = np.random.default_rng(seed)
    rate = np.exp(np.random.default_rng(0).uniform(np.log(1e-3), np.log(0.1), F))
    size = (1 - correlation) / correlation
    own = draw.beta(rate * size, (1 - rate) * size, (DOCUMENTS, F))
    return torch.from_numpy(draw.binomial(TOKENS, own))


def flagged(correlations, true: float) -> float:
    """The share of ordinary documents with a latent that is called unusual."""
    known, new = documents(1, true), documents(2, true)
    rates = Rates(known.double().mean(0) / TOKENS, DOCUMENTS * TOKENS, TOKENS)
    unusual = 0
    for count in new:
        fired = count.nonzero()[:, 0]
        tail = rates.tail(fired, count[fired], TOKENS, correlations)
        unusual += bool((holm(tail, F) <= LEVEL).any())
    return unusual / DOCUMENTS


def test_ordinary_documents_are_seldom_called_unusual():
    # 300 documents: a true 5 % gives more than 9 % in one of a thousand.
    assert max(flagged(CORRELATIONS, true) for true in (1e-4, 0.1, 0.2)) <= 0.09
    assert flagged([1e-5], 0.1) > 0.5, "as if tokens were independent: the test can fail"


def test_what_fires_throughout_a_document_is_unusual():
    known = documents(1, 0.1).double().mean(0) / TOKENS
    rates = Rates(known, DOCUMENTS * TOKENS, TOKENS)
    rare = known.argsort()[:5]
    assert bool((rates.tail(rare, torch.full((5,), TOKENS), TOKENS) * F < 1e-3).all())
    assert bool((rates.tail(rare, torch.ones(5), TOKENS) > 1e-3).all()), "once is nothing"


def test_rates_are_those_given_or_measured():
    d = dictionary()
    assert Rates.of(d, None) is None
    rate = torch.zeros(200)
    rate[3], rate[4] = 0.25, 0.002
    guessed = Rates.of(d, rate)
    assert guessed is not None and guessed.rows == 500
    measured = Rates.of(d, CodeStatistics(rate, rate, rate, rate, 0.0, 12345))
    assert measured is not None and measured.rows == 12345
    expected = measured.expected(torch.tensor([0, 3]))
    assert expected.tolist() == pytest.approx([0.5 / 12346, 0.25], rel=1e-3)
    assert float(measured.surprise(torch.tensor([3]))) == pytest.approx(2, rel=1e-3)
    with pytest.raises(ConfigError, match="rates"):
        Rates.of(d, [0.5])
