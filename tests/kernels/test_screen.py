"""The bfloat16 screen of `torch_backend.encode_topk`: the float32 selection comes out, whatever goes in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_dist.kernels import reference, screen, torch_backend


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def screened(monkeypatch):
    """As on a machine that multiplies bfloat16; others do the same, slowly. Tiles are small, and many."""
    monkeypatch.setattr(screen, "LATENT_TILE", 1024)
    monkeypatch.setattr(screen, "ROW_TILE", 4)

    def worth(x, W, k):
        return x.dtype == torch.float32 and len(W) >= screen.wanted(k, x.shape[1])[1]

    monkeypatch.setattr(screen, "is_worth", worth)


def redone(monkeypatch):
    """Collects how many rows are scored in full."""
    found, full = [], torch_backend._encode_all

    def counting(x_BD, *rest):
        found.append(len(x_BD))
        return full(x_BD, *rest)

    monkeypatch.setattr(torch_backend, "_encode_all", counting)
    return found


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 70),
    latents=st.integers(40, 1500),
    k=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
    seed=st.integers(0, 999),
)
def test_bounds_hold(rows, width, latents, k, spread, seed):
    """No score of a latent that is left out exceeds the bound, however different the norms."""
    x, W, b = draw(seed, rows, width), draw(seed + 1, latents, width), draw(seed + 2, latents)
    W = W * (spread * draw(seed + 3, latents)).exp()[:, None]
    count = min(k + 32, latents)
    idx, left_out = screen.candidates(x, W, b, count)
    assert torch.equal(idx, idx.sort(1).values) and all(len(set(row)) == count for row in idx.tolist())
    score = (x.double() @ W.double().T + b.double()).scatter(1, idx, -torch.inf)
    assert (score.amax(1) <= left_out.double()).all()


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    latents=st.integers(300, 1500),
    k=st.integers(1, 40),
    levels=st.sampled_from([1, 2, 8]),
    copies=st.integers(1, 60),
    seed=st.integers(0, 999),
)
def test_selection_is_exact_where_scores_are(rows, latents, k, levels, copies, seed):
    """Whole numbers: every product is exact in float32, ties are everywhere, also at the edge."""
    x = (draw(seed, rows, 9) * levels).round()
    W = (draw(seed + 1, latents, 9) * levels).round()
    W[: latents // 2] = W[:copies].repeat(latents, 1)[: latents // 2]
    b = (draw(seed + 2, latents) * levels).round()
    val, idx = torch_backend.encode_topk(x, W, b, k)
    val_ref, idx_ref = reference.encode_topk(x, W, b, k)
    assert torch.equal(idx, idx_ref)
    assert torch.equal(val, val_ref)


@pytest.mark.parametrize("width,latents,k", [(33, 8192, 32), (256, 4096, 1), (100, 5000, 150)])
def test_few_rows_are_redone(monkeypatch, width, latents, k):
    found = redone(monkeypatch)
    x, W = draw(0, 200, width), torch.nn.functional.normalize(draw(1, latents, width), dim=1)
    b = 0.05 * draw(2, latents)
    val, idx = torch_backend.encode_topk(x, W, b, k)
    score = x.double() @ W.double().T + b.double()
    best = score.topk(k, dim=1).values
    # Where two scores differ by less than float32 can tell, either may win.
    torch.testing.assert_close(score.gather(1, idx), best, rtol=0, atol=1e-5)
    torch.testing.assert_close(val.double(), best, rtol=0, atol=1e-5)
    assert sum(found) <= 4


def test_rows_that_cannot_be_certified_are_redone(monkeypatch):
    found = redone(monkeypatch)
    x, W, b = draw(0, 5, 16), draw(1, 900, 16), torch.zeros(900)
    W[:] = W[0]  # all scores are equal: no bound can tell them apart
    again = torch.ones((), dtype=torch.int64)
    val, idx = torch_backend.encode_topk(x, W, b, 8, again)
    assert found == [5] and int(again) == 1 + 5
    assert torch.equal(idx, torch.arange(8).expand(5, 8))
    torch.testing.assert_close(val, (x @ W[0])[:, None].expand(5, 8))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_numbers(bad):
    x, W, b = draw(0, 6, 16), draw(1, 900, 16), draw(2, 900)
    x[2, 3] = bad
    val, idx = torch_backend.encode_topk(x, W, b, 8)
    val_ref, _ = reference.encode_topk(x, W, b, 8)
    assert torch.equal(torch.isfinite(val), torch.isfinite(val_ref))
    fine = torch.arange(6) != 2
    torch.testing.assert_close(val[fine], val_ref[fine])


def test_huge_and_tiny_numbers():
    x, W, b = draw(0, 6, 16), draw(1, 900, 16), draw(2, 900)
    for scale_x, scale_W in [(1e15, 1e15), (1e-15, 1e-15), (1e20, 1e-20)]:
        val, idx = torch_backend.encode_topk(x * scale_x, W * scale_W, b * scale_x * scale_W, 8)
        val_ref, idx_ref = reference.encode_topk(x * scale_x, W * scale_W, b * scale_x * scale_W, 8)
        torch.testing.assert_close(val, val_ref)
        assert scale_x * scale_W != 1 or torch.equal(idx, idx_ref)
