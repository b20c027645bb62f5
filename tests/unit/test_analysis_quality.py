"""Quality against the same numbers computed densely, in fp64, from all rows at once."""

from types import SimpleNamespace

import pytest
import torch

from sae_dist.analysis.plots import plot_density
from sae_dist.analysis.quality import DENSITY_EDGES, evaluate, untrained_sae
from sae_dist.analysis.table import format_table
from sae_dist.core.config import RunConfig
from sae_dist.core.errors import DataError
from sae_dist.export.exported import ExportedSae
from sae_dist.kernels import torch_backend
from sae_dist.kernels.reference import encode_topk

N, D, F, K = 3000, 16, 96, 4


@pytest.fixture
def rows() -> torch.Tensor:
    """Rows with directions of very different variance, far from zero: naive sums would cancel."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=draw) * torch.logspace(0, -2, D) + 300.0


@pytest.fixture
def sae(rows) -> ExportedSae:
    draw = torch.Generator().manual_seed(2)
    W = torch.nn.functional.normalize(torch.randn(F, D, generator=draw), dim=1)
    b_enc = torch.zeros(F)
    b_enc[:5] = -1e6
    return ExportedSae(0.7 * W, b_enc, W, rows.mean(0), K)


def config(tokens: int = N, baselines: bool = True) -> RunConfig:
    cfg = RunConfig()
    cfg.eval.tokens, cfg.eval.baselines = tokens, baselines
    return cfg


def chunked(rows: torch.Tensor):
    return iter(rows.split(700))


def dense_reconstruction(sae: ExportedSae, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pre = (x - sae.b_dec_D).double() @ sae.W_enc_FD.double().T + sae.b_enc_F
    top = pre.topk(K)
    codes = torch.zeros_like(pre).scatter_(1, top.indices, top.values.relu())
    return codes, codes @ sae.W_dec_FD.double() + sae.b_dec_D


@pytest.mark.parametrize("encode", [encode_topk, torch_backend.encode_topk])
def test_streaming_numbers_equal_dense_ones(rows, sae, encode):
    result, mean = evaluate(config(), sae, chunked(rows), encode=encode)
    x = rows.double()
    codes, x_hat = dense_reconstruction(sae, rows)
    deviations = (x - x.mean(0)).square().sum(0)
    errors = (x - x_hat).square().sum(0)
    assert result["eval_tokens"] == N
    assert result["fvu"] == pytest.approx(float(errors.sum() / deviations.sum()), rel=1e-4)
    assert result["explained_variance"] == pytest.approx(float((1 - errors / deviations).mean()), rel=1e-3)
    assert result["l0"] == pytest.approx(float((codes > 0).sum(1).double().mean()), rel=1e-3)
    assert result["cosine"] == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(mean.double(), x.mean(0), atol=1e-4, rtol=0)


def test_pca_is_the_best_subspace_of_these_rows(rows, sae):
    result, _ = evaluate(config(), sae, chunked(rows), encode=encode_topk)
    centred = rows.double() - rows.double().mean(0)
    singular = torch.linalg.svdvals(centred).square()
    assert result["fvu_pca"] == pytest.approx(float(singular[K:].sum() / singular.sum()), rel=1e-3)


def test_a_dictionary_of_the_mean_alone_has_fvu_one_and_a_perfect_one_zero(rows, sae):
    sae.b_enc_F.fill_(-1e6)
    blind, _ = evaluate(config(), sae, chunked(rows), encode=encode_topk)
    assert blind["fvu"] == pytest.approx(1.0, abs=1e-4) and blind["l0"] == 0
    eye = torch.eye(D)
    perfect = ExportedSae(torch.cat([eye, -eye]), torch.zeros(2 * D), torch.cat([eye, -eye]), sae.b_dec_D, D)
    result, _ = evaluate(config(baselines=False), perfect, chunked(rows), encode=encode_topk)
    assert result["fvu"] == pytest.approx(0.0, abs=1e-6)
    assert result["fvu_pca"] is None and result["fvu_untrained"] is None


def test_the_untrained_dictionary_is_evaluated_on_the_same_rows(rows, sae):
    cfg = config()
    result, _ = evaluate(cfg, sae, chunked(rows), encode=encode_topk)
    untrained = untrained_sae(cfg, sae, rows[:700].mean(0))
    _, x_hat = dense_reconstruction(untrained, rows)
    x = rows.double()
    expected = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert result["fvu_untrained"] == pytest.approx(float(expected), rel=1e-3)


def test_firing_counts_silent_latents_and_densities(rows, sae):
    result, _ = evaluate(config(), sae, chunked(rows), encode=encode_topk)
    codes, _ = dense_reconstruction(sae, rows)
    fired = (codes > 0).sum(0)
    density = result["density"]
    assert density["silent"] == int((fired == 0).sum()) >= 5
    assert sum(density["latents"]) == int((fired > 0).sum())
    tenth = next(i for i, edge in enumerate(DENSITY_EDGES) if edge == -1.0)
    assert sum(density["latents"][tenth:]) == int((fired >= N / 10).sum())
    assert result["dead_fraction"] is None and "3000 held-out tokens" in result["dead_reason"]


def test_enough_rows_give_a_dead_fraction(rows, sae):
    tiny = (rows[:1000] for _ in range(1000))
    result, _ = evaluate(config(tokens=500_000, baselines=False), sae, tiny, encode=torch_backend.encode_topk)
    assert result["dead_tokens"] == result["eval_tokens"] == 500_000
    assert result["dead_fraction"] == result["density"]["silent"] / F and "dead_reason" not in result


def test_only_the_rows_asked_for_are_read(rows, sae):
    result, _ = evaluate(config(tokens=1000), sae, chunked(rows), encode=encode_topk)
    direct, _ = evaluate(config(), sae, iter([rows[:1000]]), encode=encode_topk)
    assert result["eval_tokens"] == 1000 and result["fvu"] == pytest.approx(direct["fvu"], rel=1e-4)


def test_no_rows_or_useless_rows_are_refused(sae):
    with pytest.raises(DataError, match="no held-out activations"):
        evaluate(config(), sae, iter([]), encode=encode_topk)
    for value in (1.0, float("nan")):
        with pytest.raises(DataError, match="all equal or not finite"):
            evaluate(config(), sae, iter([torch.full((8, D), value)]), encode=encode_topk)


def test_table_shows_numbers_with_their_baselines_and_reasons():
    numbers = SimpleNamespace(fvu=0.1234, fvu_pca=0.5, tokens=2_000_000, peak_memory_bytes=2**30)
    text = format_table(vars(numbers) | {"dead_fraction": None, "dead_reason": "too few tokens"})
    lines = [line.split() for line in text.splitlines()]
    assert ["FVU,", "held", "out", "0.1234"] in lines and lines[1][-1] == "0.5000"
    assert "2,000,000" in text and "1.00" in text and text.endswith("dead latents: none, too few tokens")


def test_density_plot_is_a_png(rows, sae, tmp_path):
    result, _ = evaluate(config(), sae, chunked(rows), encode=encode_topk)
    plot_density(result["density"], tmp_path / "plots" / "density.png")
    assert (tmp_path / "plots" / "density.png").read_bytes().startswith(b"\x89PNG")
