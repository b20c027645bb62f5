"""Intervals and tests of paired effects, on numbers whose truth is known."""

import numpy as np
import pytest

from sae_dist.interpret.statistics import (
    Estimates,
    agreement,
    estimates,
    holm,
    holm_levels,
    reach_of_draws,
)
from sae_dist.interpret.study.claims import claim, false_alarms, not_passed

DRAWS = {
    "normal": (lambda draw, shape: draw.standard_normal(shape), 0.0),
    "heavy": (lambda draw, shape: draw.standard_t(3, shape), 0.0),
    "sparse": (lambda draw, shape: (draw.random(shape) < 0.3) * draw.exponential(1, shape), 0.3),
}


@pytest.mark.parametrize("name", DRAWS)
def test_intervals_cover_the_truth(name):
    make, truth = DRAWS[name]
    found = estimates(make(np.random.default_rng(0), (40, 600)), 0, resamples=1000)
    lower, upper = found.intervals(0.1)
    assert 0.86 <= np.mean((lower <= truth) & (truth <= upper)) <= 0.945


def test_an_interval_leaves_0_out_where_the_test_does():
    values = np.random.default_rng(0).standard_normal((20, 300)) + 0.5
    found = estimates(values, 0, resamples=999)
    lower, upper = found.intervals(0.05)
    outside = (lower > 0) | (upper < 0)
    assert 0.2 < outside.mean() < 0.8
    assert np.mean(outside == (found.p_C <= 0.05)) > 0.99


def test_p_values_are_even_without_an_effect():
    found = estimates(np.random.default_rng(0).standard_normal((30, 2000)), 0, resamples=500)
    for level in (0.05, 0.2, 0.5):
        assert abs(np.mean(found.p_C <= level) - level) < 3.5 * (level * (1 - level) / 2000) ** 0.5 + 0.005


def test_holm_keeps_its_level_over_all_hypotheses():
    found = estimates(np.random.default_rng(0).standard_normal((30, 7 * 400)), 0, resamples=1000)
    some_false = (np.stack([holm(p) for p in found.p_C.reshape(400, 7)]) <= 0.05).any(1)
    unadjusted = (found.p_C.reshape(400, 7) <= 0.05).any(1)
    assert 0.02 <= some_false.mean() <= 0.085 and unadjusted.mean() > 0.2


def test_the_tail_beyond_the_resamples_is_that_of_many_more():
    values = np.random.default_rng(0).standard_normal((24, 60)) + 0.75
    few, many = (estimates(values, 0, resamples=each).p_C for each in (1000, 60_000))
    seen = (many > 3e-4) & (many < 1e-2)
    assert seen.sum() > 10 and np.abs(np.log(few[seen] / many[seen])).mean() < 0.5
    assert few.min() < 1e-5


def test_holm_by_hand():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # .005 <= .0125 and .01 <= .0167; .03 > .025 fails, and with it .04.
    assert holm_levels(p) == pytest.approx([0.05 / 3, 0.025, 0.025, 0.0125])


def test_prompts_that_agree_say_nothing_of_others():
    found = estimates(np.full((16, 1), 2.0), 0, resamples=100)
    assert found.p_C[0] == 1 and found.intervals()[0][0] == 2.0
    none = estimates(np.zeros((16, 1)), 0, resamples=100)
    assert none.p_C[0] == 1 and none.intervals() == (0.0, 0.0)


def test_one_prompt_that_differs_gives_no_interval():
    values = np.zeros((20, 1))
    values[3] = 1.0
    found = estimates(values, 0, resamples=1000)
    assert not np.isfinite(found.intervals()[1][0]) and found.p_C[0] > 0.3


def test_draws_reach_as_far_as_one_more_would():
    draw = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        means = draw.standard_normal(9)
        drawn = Estimates(means[:8], np.full(8, 1e-3), np.ones((100, 8), dtype=np.float32), 64)
        lower, upper = reach_of_draws(drawn)
        missed += not lower <= means[8] <= upper
    assert 0.01 <= missed / 400 <= 0.06  # Student's, wider where the draws themselves reach further


@pytest.mark.parametrize(
    ("interval", "controls", "missed"),
    [
        ((1.0, 2.0), {"a": (-0.5, 0.9), "b": (-3.0, -2.0)}, ()),
        ((1.0, 2.0), {"a": (-0.5, 1.1), "b": (-3.0, -2.0)}, ("a",)),
        ((1.0, 2.0), {"a": (2.5, 3.0)}, ("a",)),
        ((-2.0, -1.0), {"a": (-0.5, 0.9), "b": (-1.2, 0.0)}, ("b",)),
        ((-0.1, 2.0), {"a": (-9.0, -8.0)}, ("a",)),
    ],
)
def test_a_control_is_passed_by_the_whole_interval_in_its_direction(interval, controls, missed):
    assert not_passed(interval, controls) == missed


@pytest.mark.parametrize(
    ("changed", "claimed", "words"),
    [
        ({}, True, "Clamp 3 at 4x raises the target by 1.5"),
        ({"mean": -1.5, "interval": (-2.0, -1.0)}, True, "lowers the target by 1.5"),
        ({"missed": ("wrong sign",)}, False, "not more than that of its control: wrong sign"),
        ({"adjusted": 0.06}, False, "may be chance"),
        ({"interval": (-0.1, 3.0)}, False, "may be chance"),
        ({"interval": (-np.inf, np.inf)}, False, "+1.5 (too few prompts differ for an interval)"),
        ({"num_prompts": 15}, False, "15 prompts are too few"),
    ],
)
def test_what_is_claimed_is_said_in_words(changed, claimed, words):
    given = {
        "mean": 1.5,
        "interval": (1.0, 2.0),
        "adjusted": 0.001,
        "missed": (),
        "num_prompts": 64,
    } | changed
    mean, interval = given.pop("mean"), given.pop("interval")
    found, said = claim("clamp 3 at 4x", "the target", mean, interval, **given)
    assert found is claimed and words in said
    assert claimed or said.startswith("Nothing is claimed of clamp 3 at 4x")


def test_a_direction_like_its_controls_is_rarely_claimed():
    draw = np.random.default_rng(0)
    N, others, dose = 24, 60, np.array([0.5, 1.0, 4.0])
    effect = draw.standard_normal(others) + draw.standard_normal((N, others))
    signed = effect[..., None, None] * dose[:, None] * np.array([1.0, -1.0])
    noisy = signed + 0.3 * draw.standard_normal(signed.shape)
    claimed, unguarded = false_alarms(noisy, 3, 4, rounds=40, seed=0, resamples=300)
    assert claimed <= 0.05 and unguarded > 0.4


def test_signs_and_ranks_that_agree():
    sign, rank = agreement(np.array([1.0, -2.0, 3.0, 0.5]), np.array([2.0, -1.0, 4.0, 0.0]))
    assert sign == 1 and rank == pytest.approx(1)
    assert agreement(np.array([1.0, 2.0, 3.0]), np.array([-1.0, -2.0, -3.0]))[0] == 0
