"""Recovery scores of dictionaries whose right scores are known."""

import pytest
import torch
from torch.nn.functional import normalize

from sae_dist.evaluation.plots import plot_recovery
from sae_dist.evaluation.quality.recovery import Firing, recover


def directions(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, dtype=torch.float64, generator=generator), dim=1)


TRUTH = directions(64, 32)
PERFECT = {"mmcs": 1.0, "mmcs_latents": 1.0, "matching_score": 1.0, "matched_share": 1.0}


def test_order_and_length_of_decoder_rows_do_not_matter():
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    found = recover(TRUTH, (3 * TRUTH[order]).float())
    assert found.numbers() == pytest.approx(PERFECT, abs=1e-6)
    assert torch.equal(order[found.latent_M], found.feature_M)


def test_random_rows_score_low():
    numbers = recover(TRUTH, directions(64, 32, seed=1)).numbers()
    assert numbers["matching_score"] < 0.6 and numbers["matched_share"] == 0
    assert numbers["matching_score"] <= numbers["mmcs"] < 0.6


def test_duplicates_count_once():
    half = torch.cat([TRUTH[:32], TRUTH[:32]])
    numbers = recover(TRUTH, half).numbers()
    assert numbers["mmcs_latents"] == pytest.approx(1.0)
    assert numbers["matched_share"] == 0.5 and numbers["matching_score"] < 0.75
    spare = torch.cat([TRUTH, TRUTH])
    assert recover(TRUTH, spare).numbers() == pytest.approx(PERFECT)


def test_features_without_a_latent_count_as_missed():
    numbers = recover(TRUTH, TRUTH[:48]).numbers()
    assert numbers["matching_score"] == pytest.approx(0.75) and numbers["matched_share"] == 0.75


def test_the_opposite_direction_is_not_the_feature():
    plane = torch.eye(2, dtype=torch.float64)
    numbers = recover(plane, -plane).numbers()
    assert numbers["mmcs"] == 0 and numbers["matching_score"] == 0


def test_a_row_of_zeros_matches_nothing():
    rows = TRUTH.clone()
    rows[5] = 0
    numbers = recover(TRUTH, rows).numbers()
    assert numbers["matching_score"] == pytest.approx(63 / 64) and numbers["matched_share"] == 63 / 64


def test_the_matching_is_the_best_there_is_not_the_first_found():
    truth = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    latents = torch.tensor([[0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    # Taking the nearest row first gives 1 for the second feature and leaves 0 for the first: 0.5.
    assert float(recover(truth, latents).matched_G.mean()) == pytest.approx((0.8 + 0.6) / 2)


def test_firing_is_compared_through_the_matching():
    truth = torch.eye(3, dtype=torch.float64)
    # Latent 2 is feature 0, latent 0 is feature 1; feature 2 has a latent of its own, 3; latent 1 is spare.
    rows = torch.tensor([[0.0, 1, 0], [0.6, 0.8, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    firing = Firing(recover(truth, rows))
    fires = torch.tensor([[1, 1, 0], [0, 0, 1]]).bool()
    firing.add(fires, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([2, 3, 1, 1, 3]))
    expected = {"firing_precision": 2 / 3, "firing_recall": 2 / 3, "firing_f1": 2 / 3}
    assert firing.numbers() == pytest.approx(expected)
    firing.add(fires, torch.tensor([0]), torch.tensor([2]))
    assert firing.numbers() == pytest.approx(
        {"firing_precision": 3 / 4, "firing_recall": 3 / 6, "firing_f1": 0.6}
    )


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("latents", [3, 9])
def test_pictures_of_every_shape(tmp_path, width, latents):
    truth, rows = directions(4, width), directions(latents, width, seed=1)
    for names in ((), ("a", "b", "c", "d")):
        path = tmp_path / "plots" / "recovery.png"
        plot_recovery(recover(truth, rows), truth, rows, names, path)
        assert path.stat().st_size > 1000
        path.unlink()
