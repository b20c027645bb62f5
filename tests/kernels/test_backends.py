"""Every backend against the definition in kernels/reference.py."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_dist.core.errors import ConfigError
from sae_dist.kernels import reference, torch_backend
from tests.kernels.backends import BACKENDS, DEVICE, backend, draw

on_backends = pytest.mark.parametrize("name", BACKENDS)
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-5}
"""Of sums in float64, or in float32: bfloat16 rounds the inputs, which are the same for both."""


@on_backends
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    latents=st.sampled_from([1, 2, 16, 31, 64, 160, 512]),
    k=st.integers(1, 40),
    levels=st.sampled_from([None, 0, 1, 4]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_topk_rows_breaks_ties_by_index(name, rows, latents, k, levels, seed, dtype):
    scores = draw(seed, rows, latents, dtype=dtype, levels=levels or None) * (0 if levels == 0 else 1)
    k = min(k, latents)
    val, idx = backend(name).topk_rows(scores, k)
    val_ref, idx_ref = reference.topk_rows(scores, k)
    assert torch.equal(idx, idx_ref)
    assert torch.equal(val, val_ref)


@on_backends
@pytest.mark.parametrize(
    "scores",
    [
        [-0.0, 0.0, -0.0, 0.0],
        [-5.0] * 4,
        [-torch.inf, 1.0, -torch.inf, 1.0],
        [1.0, torch.inf, 2.0, torch.inf],
        [1.0, torch.nan, torch.inf, torch.nan],
    ],
)
def test_topk_rows_of_awkward_values(name, scores):
    row = torch.tensor([scores], device=DEVICE)
    assert backend(name).topk_rows(row, 3)[1].tolist() == reference.topk_rows(row, 3)[1].tolist()


@pytest.mark.parametrize(
    "name,latents,k",
    [("torch", 63, 7), ("torch", 4096, 32), ("torch", 4097, 5), ("torch", 9000, 300), ("torch", 20, 20)]
    + [("triton", 63, 7)],
)
@pytest.mark.parametrize("levels", [None, 2])
def test_encode_topk_over_tiles(name, latents, k, levels):
    """Of Triton's: float64, which it leaves to torch; its own way is in test_sweep.py."""
    x, W = draw(0, 300, 12, levels=levels), draw(1, latents, 12, levels=levels)
    b = draw(2, latents, levels=levels)
    val, idx = backend(name).encode_topk(x, W, b, k)
    val_ref, idx_ref = reference.encode_topk(x, W, b, k)
    assert torch.equal(idx, idx_ref)
    torch.testing.assert_close(val, val_ref, rtol=1e-12, atol=1e-12)


@on_backends
@pytest.mark.parametrize("dead,found", [("many", 9), ("few", 3), ("none", 0)])
def test_encode_topk_dead(name, dead, found):
    x, W, b = draw(0, 5, 7), draw(1, 200, 7), draw(2, 200)
    dead_F = torch.zeros(200, dtype=torch.bool, device=DEVICE)
    dead_F[{"many": slice(0, 200, 2), "few": slice(50, 53), "none": slice(0, 0)}[dead]] = True
    got, want = (each.encode_topk_dead(x, W, b, 4, dead_F, 9) for each in (backend(name), reference))
    for (val, idx), (val_ref, idx_ref) in zip(got, want, strict=True):
        assert torch.equal(idx, idx_ref)
        torch.testing.assert_close(val, val_ref, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(got[1][0]).sum(1).tolist() == [found] * 5


def ragged_pairs(seed: int, rows: int, latents: int) -> tuple[torch.Tensor, ...]:
    """Pairs with rows of 0 to 5 codes; some latents in no row, one in many."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 6, (rows,), generator=generator)
    latent = torch.randint(0, latents, (int(counts.sum()),), generator=generator)
    latent[::3] = latents // 2
    return latent.to(DEVICE), draw(seed + 1, len(latent)), (counts.cumsum(0) - counts).to(DEVICE)


def check_sparse(name: str, rows: int, latents: int, width: int, dtype: torch.dtype) -> None:
    """Every sum over pairs, on inputs of a dtype, against the definition in float64."""
    latent, value, offsets = ragged_pairs(rows, rows, latents)
    value, W, grad = value.to(dtype), draw(3, latents, width, dtype=dtype), draw(4, rows, width, dtype=dtype)
    value64, W64, grad64 = value.double(), W.double(), grad.double()
    for operation, args, exact in (
        ("decode", (latent, value, offsets, W), (latent, value64, offsets, W64)),
        ("latent_gradient", (latent, offsets, grad, W), (latent, offsets, grad64, W64)),
        (
            "weight_gradient",
            (latent, value, offsets, grad, latents),
            (latent, value64, offsets, grad64, latents),
        ),
        ("bias_gradient", (latent, value, latents), (latent, value64, latents)),
    ):
        got, want = getattr(backend(name), operation)(*args), getattr(reference, operation)(*exact)
        close = CLOSE[dtype] * max(1.0, float(want.abs().max()) if want.numel() else 0)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=close, msg=operation)


@on_backends
@pytest.mark.parametrize("rows,latents,width", [(1, 1, 1), (40, 17, 5), (30, 64, 33), (4, 3, 300)])
def test_sparse_kernels(name, rows, latents, width):
    check_sparse(name, rows, latents, width, torch.float64)


@on_backends
@settings(deadline=None, max_examples=12)
@given(rows=st.integers(1, 7), latents=st.integers(1, 12), width=st.integers(1, 70))
def test_sparse_kernels_in_float32(name, rows, latents, width):
    check_sparse(name, rows, latents, width, torch.float32)


@pytest.mark.parametrize("faster", [0, 10**9])
@pytest.mark.parametrize("rows,latents,width", [(1, 1, 1), (40, 17, 5), (9, 40000, 3)])
def test_a_dense_product_over_few_latents_is_the_sparse_one(faster, rows, latents, width, monkeypatch):
    monkeypatch.setattr(torch_backend, "FASTER", faster)
    monkeypatch.setattr(torch_backend, "ROW_TILE", 4)
    check_sparse("torch", rows, latents, width, torch.float64)


@pytest.mark.parametrize("rows,latents,width", [(9, 5, 31), (3, 8, 64)])
def test_sparse_kernels_in_bfloat16(rows, latents, width):
    check_sparse("triton", rows, latents, width, torch.bfloat16)


@on_backends
def test_inputs_need_not_be_contiguous(name):
    latent, value, offsets = ragged_pairs(3, 12, 6)
    W, grad = draw(3, 10, 6).T, draw(4, 10, 12).T
    want = reference.decode(latent, value, offsets, W)
    torch.testing.assert_close(backend(name).decode(latent, value, offsets, W), want)
    want = reference.latent_gradient(latent, offsets, grad, W)
    torch.testing.assert_close(backend(name).latent_gradient(latent, offsets, grad.contiguous(), W), want)
    want = reference.weight_gradient(latent, value, offsets, grad, 6)
    torch.testing.assert_close(backend(name).weight_gradient(latent, value, offsets, grad, 6), want)


def test_triton_shares_out_a_frequent_latent_and_two_runs_are_equal(small_windows):
    """Whole windows of one latent are added up by programs of their own, in an order that never changes."""
    rows, latents = 60, 3
    latent = torch.ones(3 * rows, dtype=torch.int64, device=DEVICE)
    latent[::7] = 2
    value, grad = draw(0, len(latent), dtype=torch.float32), draw(1, rows, 9, dtype=torch.float32)
    offsets = torch.arange(0, len(latent), 3, device=DEVICE)
    kernels = backend("triton")
    first, second = (kernels.weight_gradient(latent, value, offsets, grad, latents) for _ in range(2))
    assert torch.equal(first, second)
    want = reference.weight_gradient(latent, value.double(), offsets, grad.double(), latents)
    torch.testing.assert_close(first.double(), want, rtol=1e-5, atol=1e-5)


def test_triton_refuses_what_it_does_not_know():
    latent, value, offsets = ragged_pairs(3, 12, 6)
    with pytest.raises(ConfigError, match="does not know torch.float16; use float32, bfloat16, float64"):
        backend("triton").decode(latent, value, offsets, draw(3, 6, 4, dtype=torch.float16))
    with pytest.raises(ConfigError, match="meta; use one device"):
        # The operation itself would take a tensor without data for the question which shape comes out.
        importlib.import_module("sae_dist.kernels.triton_sparse").decode(
            latent, value, offsets, torch.empty(6, 4, device="meta")
        )


def test_reference_gradients_are_those_of_autograd():
    latent, value, offsets = ragged_pairs(5, 20, 9)
    W = draw(6, 9, 4).requires_grad_()
    value.requires_grad_()
    grad = draw(7, 20, 4)
    reference.decode(latent, value, offsets, W).backward(grad)
    torch.testing.assert_close(value.grad, reference.latent_gradient(latent, offsets, grad, W.detach()))
    torch.testing.assert_close(W.grad, reference.weight_gradient(latent, value.detach(), offsets, grad, 9))
