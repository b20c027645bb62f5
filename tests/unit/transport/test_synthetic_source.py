"""Synthetic activations: the same wherever they are made, with the statistics that the config asks for."""

import numpy as np
import pytest
import torch

from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, load_config, save_config
from sae_dist.config.sections import ActivationsConfig
from sae_dist.core.errors import ConfigError
from sae_dist.dictionary.latents import unit_rows
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.transport.ground_truth import Draws, GroundTruth
from sae_dist.transport.synthetic import SyntheticChunkSource


def config(**given):
    base = dict(num_features=12, width=8, mean_active=2.0, zipf=0.0, magnitudes="uniform", noise=0.0)
    return ActivationsConfig(kind="synthetic", **{**base, "groups": "independent", **given})


def source(*, lanes=4, rows=64, seed=0, held_out=False, **given):
    truth = GroundTruth.of(config(**given), seed)
    return SyntheticChunkSource(
        truth, lanes=lanes, rows=rows, seed=seed, held_out=held_out, dtype=torch.float64
    )


def fires(rows=40_000, **given):
    return GroundTruth.of(config(**given), 0).fires(rows, Draws(0, 0, 0, 9))


def close_to(measured, share, rows):
    """Within five standard deviations of a share measured on so many rows."""
    return np.abs(measured - share) < 5 * np.sqrt(share * (1 - share) / rows) + 1e-12


def test_a_chunk_is_reached_directly_and_is_always_the_same():
    chunks = source().open(2, None)
    seen = [next(chunks) for _ in range(6)]
    again = next(source().open(2, seen[5].start))
    assert again.number == 5 * 4 + 2 and again.start == {"chunk": 5}
    assert torch.equal(again.rows_RD, seen[5].rows_RD) and torch.equal(again.ids_R, seen[5].ids_R)
    assert again.rows_RD.shape == (64, 8) and again.rows_RD.dtype == torch.float64


def test_every_row_has_a_number_and_numbers_of_its_own():
    chunks = [
        chunk for lane in range(4) for chunk, _ in zip(source().open(lane, None), range(3), strict=False)
    ]
    ids = torch.cat([chunk.ids_R for chunk in chunks])
    assert torch.equal(ids.sort().values, torch.arange(4 * 3 * 64))
    rows = torch.cat([chunk.rows_RD for chunk in chunks])
    some = rows[rows.norm(dim=1) > 0]
    assert len(some.unique(dim=0)) == len(some) > 0.8 * len(rows)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"held_out": True}])
def test_other_seeds_and_held_out_rows_are_other_rows(changed):
    one, other = (next(source(**given).open(0, None)).rows_RD for given in ({}, changed))
    assert not (one[:, None] == other[None]).all(2).logical_and(one.norm(dim=1)[:, None] > 0).any()


def test_held_out_rows_share_the_truth_and_do_not_end():
    training, held_out = source(), source(held_out=True)
    assert torch.equal(training.truth.directions_GD, held_out.truth.directions_GD)
    assert next(held_out.open(0, {"chunk": 10**6})).number == 10**6


@pytest.mark.parametrize("consumers", [2, 4])
def test_batches_do_not_depend_on_who_owns_the_lanes(consumers):
    def batches(count):
        shuffles = [
            Shuffle(
                source(),
                list(range(rank, 4, count)),
                num_lanes=4,
                rows_per_step=32 // count,
                steps=10,
                seed=0,
                block_chunks=2,
            )
            for rank in range(count)
        ]
        for step in range(10):
            out = torch.empty(32, 8, dtype=torch.float64)
            for rank, shuffle in enumerate(shuffles):
                out[rank::count] = shuffle.draw(step)[0]
            yield out

    for one, many in zip(batches(1), batches(consumers), strict=True):
        assert torch.equal(one, many)


def test_a_row_is_the_sum_of_its_features():
    given = dict(num_features=3, width=3, directions=[[2, 0, 0], [0, 3, 0], [0, 0, 0.5]], mean_active=1.5)
    made = source(**given, magnitudes="constant", rows=4096)
    rows = next(made.open(0, None)).rows_RD
    assert torch.equal(rows.unique(), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert close_to(rows.mean(0).numpy(), 0.5, 4096).all()
    assert torch.equal(made.fires(0, 0), rows > 0)
    noisy = next(source(**given, magnitudes="constant", noise=0.1, rows=4096).open(0, None)).rows_RD
    assert float((noisy - rows).std()) == pytest.approx(0.1, rel=0.03)
    assert float((noisy - rows).mean()) == pytest.approx(0.0, abs=0.005)


@pytest.mark.parametrize(("kind", "deviation"), [("constant", 0), ("uniform", 3**-0.5), ("exponential", 1)])
def test_magnitudes_have_mean_one(kind, deviation):
    drawn = GroundTruth.of(config(magnitudes=kind), 0).magnitudes(50_000, Draws(0, 0, 0, 9))
    assert drawn.min() >= 0
    assert drawn.mean() == pytest.approx(1, abs=0.02) and drawn.std() == pytest.approx(deviation, abs=0.02)


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"groups": "together", "group_size": 4, "group_strength": 0.5},
        {"groups": "hierarchy", "group_size": 4, "group_strength": 0.5},
        {"groups": "apart", "group_size": 4},
    ],
    ids=lambda given: given.get("groups", "independent"),
)
@pytest.mark.parametrize("zipf", [0.0, 1.0])
def test_features_fire_as_often_as_asked(groups, zipf):
    given = dict(zipf=zipf, mean_active=1.2, **groups)
    truth, fired = GroundTruth.of(config(**given), 0), fires(**given)
    assert truth.true_l0 == pytest.approx(1.2)
    assert close_to(fired.mean(0), truth.rates_G, len(fired)).all()
    if zipf and groups.get("groups") != "hierarchy":
        assert truth.rates_G[0] / truth.rates_G[9] == pytest.approx(10)


def test_independent_features_are_uncorrelated_and_groups_fire_together():
    own = np.corrcoef(fires().T) - np.eye(12)
    assert np.abs(own).max() < 0.03
    grouped = np.corrcoef(fires(groups="together", group_size=3, group_strength=0.4).T) - np.eye(12)
    inside = np.kron(np.eye(4), np.ones((3, 3))).astype(bool) & ~np.eye(12, dtype=bool)
    assert np.abs(grouped[inside] - 0.4).max() < 0.04 and np.abs(grouped[~inside]).max() < 0.03


def test_children_fire_only_with_their_parent():
    fired = fires(groups="hierarchy", group_size=3, group_strength=0.3)
    for first in range(0, 12, 3):
        parent, children = fired[:, first], fired[:, first + 1 : first + 3]
        assert not children[~parent].any()
        assert close_to(children[parent].mean(0), 0.3, parent.sum()).all()


def test_features_apart_never_fire_together():
    fired = fires(groups="apart", group_size=3)
    assert fired.reshape(-1, 4, 3).sum(2).max() == 1
    assert fired.any(0).all()


def test_directions_are_unit_rows_and_not_those_that_training_starts_from():
    truth = GroundTruth.of(config(num_features=64, width=32), 0).directions_GD
    assert torch.allclose(truth.norm(dim=1), torch.ones(64, dtype=torch.float64))
    assert float((truth @ unit_rows(0, 0, 256, 32).T).max()) < 0.9
    given = GroundTruth.of(config(num_features=2, width=2, directions=[[3, 4], [0, -2]]), 0).directions_GD
    assert torch.allclose(given, torch.tensor([[0.6, 0.8], [0.0, -1.0]], dtype=torch.float64))


def test_the_truth_is_in_the_frozen_config(tmp_path):
    named = config(num_features=2, width=2, directions=[[3, 4], [0, -0.5]], names=["a", "b"])
    for given in (config(num_features=64), named):
        cfg = RunConfig(seed=7, activations=given)
        cfg.sae.kind, cfg.optim.kind = "topk", "adam"
        cfg.llm.name, cfg.tokens.kind = "x", "text"
        save_config(resolve(cfg, None, 2), tmp_path / "config.yaml")
        read = load_config(tmp_path / "config.yaml")
        one, two = (GroundTruth.of(each.activations, each.seed) for each in (cfg, read))
        assert torch.equal(one.directions_GD, two.directions_GD) and one.names == two.names
        assert (one.rates_G == two.rates_G).all()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(mean_active=6.0, zipf=2.0), "a feature fire in 3.83 of all rows; use at most 1.56"),
        (dict(mean_active=6.0, groups="apart", group_size=3), "of a group fire in 1.5 .* use at most 4"),
    ],
)
def test_features_cannot_fire_in_more_than_all_rows(given, says):
    with pytest.raises(ConfigError, match=says):
        GroundTruth.of(config(**given), 0)
