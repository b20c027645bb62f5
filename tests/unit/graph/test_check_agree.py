"""Agreement of predicted with measured effects: signs, ranks, sizes, and how often chance passes for it."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from sae_dist.graph.check.agree import FEWEST, agreement, spearman, wilson


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_are_those_of_scipy(ties):
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=(2, 40))
    if ties:
        one, other = one.round(), other.round()
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)


@pytest.mark.parametrize(
    ("hits", "num", "low", "high"),
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_published_one(hits, num, low, high):
    assert wilson(hits, num) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_what_is_as_predicted_agrees():
    told = np.linspace(-1, 1, 12)
    found = agreement(told, 0.8 * told)
    assert (found.same_sign, found.rank) == (12, pytest.approx(1.0))
    assert found.slope == pytest.approx(0.8) and found.signs_agree and found.ranks_agree


def test_few_have_no_rank_and_nothing_is_told_of_it():
    told = np.ones(FEWEST - 1)
    found = agreement(told, told)
    assert math.isnan(found.rank) and not found.ranks_agree
    assert found.to_json()["rank"] is None


def test_an_effect_of_nothing_is_a_miss_and_a_prediction_of_nothing_does_not_count():
    found = agreement(np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 5.0]))
    assert (found.same_sign, found.sign, found.num) == (1, 0.5, 3)


def test_effects_of_one_source_count_as_one():
    told = np.ones(100)
    alone, together = agreement(told, told), agreement(told, told, group_C=[0] * 50 + [1] * 50)
    assert alone.sign_interval[0] > 0.95 and together.sign_interval == pytest.approx(wilson(2, 2))


def test_chance_seldom_agrees_in_signs_and_ranks():
    draw, rounds = np.random.default_rng(1), 200
    passed = 0
    for seed in range(rounds):
        told, found = draw.normal(size=(2, 20))
        both = agreement(told, found, seed)
        passed += both.signs_agree and both.ranks_agree
    assert passed / rounds < 0.05
