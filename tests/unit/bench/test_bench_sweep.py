"""The sweep on fake trials: where it ends, what it tries, what it picks."""

import math

import pytest

from sae_dist.bench.quality.contestants import CONTESTANTS
from sae_dist.bench.quality.run import trial_cost
from sae_dist.bench.quality.sweep import MOST, best_of, is_bracketed, sweep


def valley(best: float):
    """Cost that grows with the distance from `best` in octaves; counts its calls."""

    def trial(lr: float) -> float:
        trial.calls.append(lr)
        return 0.1 + abs(math.log2(lr / best))

    trial.calls = []
    return trial


@pytest.mark.parametrize("octaves", [0, -1, 1, -4, 5])
def test_extends_until_the_best_is_bracketed(octaves):
    trial = valley(1e-3 * 2.0**octaves)
    costs = sweep(1e-3, trial)
    assert best_of(costs) == pytest.approx(1e-3 * 2.0**octaves, rel=0.01)
    assert is_bracketed(costs) and len(costs) == 3 + abs(octaves)
    assert len(trial.calls) == len(costs), "nothing is tried twice"
    assert list(costs) == sorted(costs)


def test_goes_down_while_nothing_counts():
    costs = sweep(1e-2, lambda lr: 0.2 - lr if lr < 1e-3 else math.inf)
    assert best_of(costs) == pytest.approx(1e-2 / 16) and is_bracketed(costs)


def test_what_is_not_a_number_does_not_win():
    costs = sweep(1e-3, lambda lr: math.nan if lr > 1e-3 else 0.5 - 100 * lr)
    assert best_of(costs) == 1e-3 and is_bracketed(costs)


def test_refines_around_the_best():
    trial = valley(1e-3 * 2**0.5)
    costs = sweep(1e-3, trial, refine=True)
    assert best_of(costs) == pytest.approx(1e-3 * 2**0.5, rel=0.01) and is_bracketed(costs)
    assert len(trial.calls) == len(costs) and best_of(sweep(1e-3, trial)) != best_of(costs)


def test_gives_up_and_says_so():
    costs = sweep(1e-3, lambda lr: lr)
    assert len(costs) == MOST and not is_bracketed(costs) and best_of(costs) == min(costs)
    assert best_of(sweep(1e-3, lambda lr: math.inf)) is None


def test_ours_wins_only_with_few_dead_latents_and_a_peer_with_any():
    result = {"fvu": 0.08, "dead": 0.06}
    assert trial_cost(result, CONTESTANTS["ours"].dead_at_most) == math.inf
    assert trial_cost(result | {"dead": 0.05}, CONTESTANTS["ours"].dead_at_most) == 0.08
    assert trial_cost(result, CONTESTANTS["saelens"].dead_at_most) == 0.08
    assert trial_cost({"fvu": None, "dead": None}, None) == math.inf
