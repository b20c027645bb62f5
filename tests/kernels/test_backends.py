"""Every backend against the definition in kernels/reference.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_dist.kernels import reference, torch_backend


def draw(
    seed: int, *shape: int, dtype: torch.dtype = torch.float64, levels: int | None = None
) -> torch.Tensor:
    """Random numbers; with `levels`, few distinct values, so that ties are everywhere."""
    values = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return values if levels is None else (values * levels).round() / levels


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    latents=st.sampled_from([1, 2, 16, 31, 64, 160, 512]),
    k=st.integers(1, 40),
    levels=st.sampled_from([None, 0, 1, 4]),
    seed=st.integers(0, 99),
)
def test_topk_rows_breaks_ties_by_index(rows, latents, k, levels, seed):
    scores = draw(seed, rows, latents, levels=levels or None) * (0 if levels == 0 else 1)
    k = min(k, latents)
    val, idx = torch_backend.topk_rows(scores, k)
    val_ref, idx_ref = reference.topk_rows(scores, k)
    assert torch.equal(idx, idx_ref)
    assert torch.equal(val, val_ref)


@pytest.mark.parametrize("scores", [[-0.0, 0.0, -0.0, 0.0], [-5.0] * 4, [-torch.inf, 1.0, -torch.inf, 1.0]])
def test_topk_rows_of_awkward_values(scores):
    row = torch.tensor([scores])
    assert torch_backend.topk_rows(row, 3)[1].tolist() == reference.topk_rows(row, 3)[1].tolist()


@pytest.mark.parametrize("latents,k", [(63, 7), (4096, 32), (4097, 5), (9000, 300), (20, 20)])
@pytest.mark.parametrize("levels", [None, 2])
def test_encode_topk_over_tiles(latents, k, levels):
    x, W = draw(0, 300, 12, levels=levels), draw(1, latents, 12, levels=levels)
    b = draw(2, latents, levels=levels)
    val, idx = torch_backend.encode_topk(x, W, b, k)
    val_ref, idx_ref = reference.encode_topk(x, W, b, k)
    assert torch.equal(idx, idx_ref)
    torch.testing.assert_close(val, val_ref, rtol=1e-12, atol=1e-12)


def ragged_pairs(seed: int, rows: int, latents: int) -> tuple[torch.Tensor, ...]:
    """Pairs with rows of 0 to 5 codes; some latents in no row, one in many."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 6, (rows,), generator=generator)
    latent = torch.randint(0, latents, (int(counts.sum()),), generator=generator)
    latent[::3] = latents // 2
    return latent, draw(seed + 1, len(latent)), counts.cumsum(0) - counts


@pytest.mark.parametrize("rows,latents,width", [(1, 1, 1), (40, 17, 5), (129, 64, 33)])
def test_sparse_kernels(rows, latents, width):
    latent, value, offsets = ragged_pairs(rows, rows, latents)
    W, grad = draw(3, latents, width), draw(4, rows, width)
    for name, args in {
        "decode": (latent, value, offsets, W),
        "latent_gradient": (latent, offsets, grad, W),
        "weight_gradient": (latent, value, offsets, grad, latents),
    }.items():
        got, want = getattr(torch_backend, name)(*args), getattr(reference, name)(*args)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=name)


def test_reference_gradients_are_those_of_autograd():
    latent, value, offsets = ragged_pairs(5, 20, 9)
    W = draw(6, 9, 4).requires_grad_()
    value.requires_grad_()
    grad = draw(7, 20, 4)
    reference.decode(latent, value, offsets, W).backward(grad)
    torch.testing.assert_close(value.grad, reference.latent_gradient(latent, offsets, grad, W.detach()))
    torch.testing.assert_close(W.grad, reference.weight_gradient(latent, value.detach(), offsets, grad, 9))
