"""Quality against the same numbers computed densely, in fp64, from all rows at once."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sae_dist.config.run import RunConfig
from sae_dist.core.errors import DataError
from sae_dist.evaluation.plots import plot_density
from sae_dist.evaluation.quality.measure import DENSITY_EDGES, Evaluation, untrained_sae
from sae_dist.evaluation.quality.measure import evaluate as evaluate_all
from sae_dist.evaluation.table import format_table
from sae_dist.export.exported import ExportedSae
from sae_dist.kernels import torch_backend
from sae_dist.kernels.reference import encode_topk
from tests.helpers.dictionaries import dense_codes, dense_output, random_sae

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
    return ExportedSae(kind="topk", W_enc_FD=0.7 * W, b_enc_F=b_enc, W_dec_FE=W, b_dec_E=rows.mean(0), k=K)


def config(tokens: int = N, baselines: bool = True) -> RunConfig:
    cfg = RunConfig()
    cfg.eval.tokens, cfg.eval.baselines = tokens, baselines
    return cfg


def evaluate(cfg: RunConfig, sae: ExportedSae, batches, *, encode):
    """Numbers and mean of one dictionary."""
    part = Evaluation(cfg, sae, encode)
    evaluate_all([part], batches, cfg.eval.tokens)
    return part.numbers(), part.mean()


def chunked(rows: torch.Tensor):
    return iter(rows.split(700))


def dense_reconstruction(sae: ExportedSae, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = replace(sae, **{n: v.double() for n, v in vars(sae).items() if isinstance(v, torch.Tensor)})
    return dense_codes(wide, x.double()), dense_output(wide, x.double())


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
    both = torch.cat([eye, -eye])
    perfect = replace(sae, W_enc_FD=both, b_enc_F=torch.zeros(2 * D), W_dec_FE=both, k=D)
    result, _ = evaluate(config(baselines=False), perfect, chunked(rows), encode=encode_topk)
    assert result["fvu"] == pytest.approx(0.0, abs=1e-6)
    assert result["fvu_pca"] is None and result["fvu_untrained"] is None
    assert result["fvu_pca_reason"] == result["fvu_untrained_reason"] == "eval.baselines=false"


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
    assert (
        result["dead_fraction"] is None
        and "3,000 held-out tokens; 500,000 are needed" in result["dead_reason"]
    )


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


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
def test_kinds_without_k_are_measured_by_the_same_numbers(kind):
    draw = torch.Generator().manual_seed(4)
    sae = random_sae(kind, D=32)
    x = 2 * torch.randn(N, 32, generator=draw)
    result, _ = evaluate(config(), sae, chunked(x), encode=torch_backend.encode_topk)
    codes, x_hat = dense_reconstruction(sae, x)
    centred = (x - x.mean(0)).double()
    assert result["fvu"] == pytest.approx(
        float((x - x_hat).square().sum() / centred.square().sum()), rel=1e-4
    )
    l0 = float((codes > 0).sum(1).double().mean())
    assert result["l0"] == pytest.approx(l0, rel=1e-3) and 4 < l0 < 28
    singular = torch.linalg.svdvals(centred).square()
    assert result["fvu_pca"] == pytest.approx(float(singular[round(l0) :].sum() / singular.sum()), rel=1e-3)
    assert result["fvu_untrained"] is None and "only topk" in result["fvu_untrained_reason"]
    assert result["density"]["silent"] == int((codes == 0).all(0).sum())


@pytest.mark.parametrize("form", ["transcoder", "skip"])
@pytest.mark.parametrize("kind", ["topk", "relu", "jumprelu", "gated"])
def test_a_transcoder_is_measured_by_its_target(kind, form):
    draw = torch.Generator().manual_seed(5)
    sae = random_sae(kind, form)
    # Inputs as behind a normalisation, in a subspace, far from zero; targets partly linear in them.
    x = torch.randn(N, 12, generator=draw)
    x[:, 3] = -x[:, :3].sum(1)
    x = x + 50.0
    y = torch.tanh(x - 50.0)[:, :9] @ torch.randn(9, 9, generator=draw) + torch.randn(N, 9, generator=draw)
    y = y + torch.linspace(0, 100, 9)
    result, mean = evaluate(config(), sae, chunked(torch.cat([x, y], 1)), encode=torch_backend.encode_topk)
    _, y_hat = dense_reconstruction(sae, x)
    deviations = (y - y.mean(0)).double().square().sum(0)
    errors = (y - y_hat).square().sum(0)
    assert result["fvu"] == pytest.approx(float(errors.sum() / deviations.sum()), rel=1e-3)
    assert result["explained_variance"] == pytest.approx(float((1 - errors / deviations).mean()), rel=1e-3)
    cosine = torch.cosine_similarity(y.double(), y_hat, dim=1).mean()
    assert result["cosine"] == pytest.approx(float(cosine), abs=1e-4)
    torch.testing.assert_close(mean.double(), y.double().mean(0), atol=1e-3, rtol=0)
    ones = torch.cat([x.double(), torch.ones(N, 1, dtype=torch.float64)], 1)
    best = ones @ torch.linalg.lstsq(ones, y.double(), rcond=1e-7, driver="gelsd").solution
    linear = float((y - best).square().sum() / deviations.sum())
    assert 0.1 < linear < 0.9 and result["fvu_linear"] == pytest.approx(linear, rel=1e-6)
    assert result["fvu_pca"] is None and "transcoder" in result["fvu_pca_reason"]
    assert result["fvu_untrained"] is None and "transcoder" in result["fvu_untrained_reason"]


def test_a_linear_target_leaves_the_linear_map_nothing(rows):
    sae = random_sae("relu", "transcoder", D=D, out=3)
    both = torch.cat([rows, rows[:, :3] * 2 - 1], 1)
    result, _ = evaluate(config(), sae, chunked(both), encode=encode_topk)
    assert result["fvu_linear"] < 1e-8
    without, _ = evaluate(config(baselines=False), sae, chunked(both), encode=encode_topk)
    assert without["fvu_linear"] is None and without["fvu"] == pytest.approx(result["fvu"])


def test_table_shows_numbers_with_their_baselines_and_reasons():
    numbers = SimpleNamespace(fvu=0.1234, fvu_pca=0.5, tokens=2_000_000, peak_memory_bytes=2**30)
    text = format_table(vars(numbers) | {"dead_fraction": None, "dead_reason": "too few tokens"})
    lines = [line.split() for line in text.splitlines()]
    assert ["FVU,", "held", "out", "0.1234"] in lines and lines[1][-1] == "0.5000"
    assert (
        "2,000,000" in text
        and "1.00" in text
        and text.endswith("dead latents: not measured (too few tokens)")
    )


def test_density_plot_is_a_png(rows, sae, tmp_path):
    result, _ = evaluate(config(), sae, chunked(rows), encode=encode_topk)
    plot_density(result["density"], tmp_path / "plots" / "density.png")
    assert (tmp_path / "plots" / "density.png").read_bytes().startswith(b"\x89PNG")
