"""Numbers of an evaluation where they are known: dictionaries and activations made for it."""

import pytest
import torch

from sae_dist.config.run import RunConfig
from sae_dist.evaluation.probes.controls import controls, matched, shuffled_dimensions, shuffled_rows
from sae_dist.evaluation.quality.measure import Evaluation, evaluate
from sae_dist.evaluation.quality.redundancy import nearest_rows, redundancy
from sae_dist.export.exported import ExportedSae
from sae_dist.kernels.reference import encode_topk

D = 8


def rows(count: int = 4000) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, D, generator=draw) @ torch.diag(torch.linspace(0.5, 2, D))


def both_signs(scale: float = 1.0, bias: float = 0.0, D: int = D) -> ExportedSae:
    """Reconstructs x times `scale`; with a bias far below zero, nothing."""
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    return ExportedSae(
        kind="relu",
        W_enc_FD=both,
        b_enc_F=torch.full((2 * D,), bias),
        W_dec_FE=scale * both,
        b_dec_E=torch.zeros(D),
    )


def numbers(sae: ExportedSae, x: torch.Tensor) -> dict:
    cfg = RunConfig()
    cfg.eval.baselines = False
    part = Evaluation(cfg, sae, encode_topk)
    evaluate([part], iter(x.split(700)), len(x))
    return part.numbers()


def test_a_perfect_dictionary():
    found = numbers(both_signs(), rows())
    assert found["fvu"] < 1e-12 and found["explained_variance"] == pytest.approx(1)
    assert found["l2_ratio"] == pytest.approx(1) and found["relative_bias"] == pytest.approx(1)
    assert max(found["fvu_quantiles"].values()) < 1e-12 and found["fvu_without_high_norm"] < 1e-12
    assert found["silent_fraction"] == 0 and found["l0"] == pytest.approx(D)


def test_one_that_says_nothing():
    x = rows() - rows().mean(0)
    found = numbers(both_signs(bias=-1e9), x)
    assert found["fvu"] == pytest.approx(1, abs=1e-6) and found["l2_ratio"] == 0 and found["l0"] == 0
    assert found["relative_bias"] is None and "point" in found["relative_bias_reason"]
    assert found["silent_fraction"] == 1 and found["dense_fraction_1"] == 0


def test_one_that_shrinks_by_a_fifth():
    x = rows()
    found = numbers(both_signs(0.8), x - x.mean(0))
    assert found["l2_ratio"] == pytest.approx(0.8) and found["relative_bias"] == pytest.approx(0.8)
    assert found["fvu"] == pytest.approx(0.04, rel=1e-5) and found["cosine"] == pytest.approx(1)


def test_quantiles_are_those_of_the_tokens_and_their_mean_the_fvu():
    x = rows()
    x = x - x.mean(0)
    error_N = (0.2 * x).double().square().sum(1) / x.double().square().sum(1).mean()
    found = numbers(both_signs(0.8), x)
    for q, value in found["fvu_quantiles"].items():
        assert value == pytest.approx(float(error_N.quantile(float(q), interpolation="nearest")), rel=1e-4)
    assert float(error_N.mean()) == pytest.approx(found["fvu"], rel=1e-5)


def test_long_tokens_are_set_apart():
    x = rows()
    x[::100] *= 50
    sae = both_signs(0.8)
    found, ordinary = numbers(sae, x), x[x.norm(dim=1) <= 3 * x[:700].norm(dim=1).median()]
    assert found["high_norm_share"] == pytest.approx(0.01, abs=2e-3)
    assert found["fvu_without_high_norm"] == pytest.approx(numbers(sae, ordinary)["fvu"], rel=1e-5)


def test_latents_by_how_often_they_fire():
    x = torch.zeros(1000, 4)
    x[:, 0] = 1 + torch.rand(1000, generator=torch.Generator().manual_seed(0))
    x[:50, 1], x[:5, 2] = 1, 1
    sae = ExportedSae(
        kind="relu",
        W_enc_FD=torch.eye(4),
        b_enc_F=torch.zeros(4),
        W_dec_FE=torch.eye(4),
        b_dec_E=torch.zeros(4),
    )
    found = numbers(sae, x)
    assert found["dense_fraction_10"] == 0.25 and found["dense_fraction_1"] == 0.5
    assert found["silent_fraction"] == 0.25 and found["l0"] == pytest.approx(1.055)


def test_decoder_rows_that_stand_twice(tmp_path):
    draw = torch.Generator().manual_seed(0)
    W = torch.eye(6)[:4]
    W = torch.cat([W, 3 * W[1:2], torch.tensor([[0.0, 0, 0, 0, 1, 0]]) + 0.75 * W[0]])
    found = redundancy(W, asked=False, folder=tmp_path)["redundancy"]
    assert found["above_0.9"] == pytest.approx(2 / 6) and found["above_0.7"] == pytest.approx(2 / 6)
    assert found["mean"] == pytest.approx((0.6 + 1 + 0 + 0 + 1 + 0.6) / 6) and sum(found["latents"]) == 6
    assert (tmp_path / "neighbours.safetensors").exists()

    W = torch.randn(103, 7, generator=draw)
    W[3] = 0
    dense = torch.nn.functional.normalize(W, dim=1)
    dense = (dense @ dense.T).fill_diagonal_(-torch.inf)
    best, which = nearest_rows(W, tile=16)
    assert torch.allclose(best, dense.amax(1), atol=1e-6)
    assert torch.allclose(dense[torch.arange(103), which], best, atol=1e-6)


def test_redundancy_of_many_latents_waits_to_be_asked():
    big = torch.empty(1_000_000, 1).expand(-1, 512)
    found = redundancy(big, asked=False)
    assert found["redundancy"] is None and "--full" in found["redundancy_reason"]
    assert redundancy(torch.ones(1, 4), asked=True)["redundancy"] is None


def test_controls_are_clearly_worse_and_keep_what_they_say():
    draw = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(16, 64, generator=draw), dim=1)
    x = (torch.rand(3000, 16, generator=draw) < 0.1).float() @ features
    sae = ExportedSae(
        kind="topk",
        W_enc_FD=features @ torch.linalg.pinv(features.T @ features),
        b_enc_F=torch.zeros(16),
        W_dec_FE=features,
        b_dec_E=torch.zeros(64),
        k=8,
    )
    random = 100 + 7 * torch.randn(3000, 64, generator=draw)
    found = controls(sae, encode_topk, x, random)
    assert found["real"]["fvu"] < 0.01
    for name in ("shuffled_dimensions", "shuffled_rows", "random_llm"):
        assert found[name]["fvu"] > 0.5, name
    shuffled = shuffled_dimensions(x)
    assert torch.equal(shuffled.sort(0).values, x.sort(0).values) and not torch.equal(shuffled, x)
    assert torch.allclose(shuffled_rows(x).norm(dim=1), x.norm(dim=1))
    like = matched(random, x)
    assert torch.allclose(like.mean(0), x.mean(0), atol=1e-4)
    assert float(like.var(0).sum()) == pytest.approx(float(x.var(0).sum()), rel=1e-3)
