"""A dictionary in use: codes and reconstructions are those of the formulas, whatever fits into memory."""

import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.interpret import encoding
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.kernels.torch_backend import encode_topk
from tests.helpers.dictionaries import FORMS, KINDS, D, F, dense_codes, dense_output, random_sae
from tests.helpers.in_use import Path, Place

CASES = [(kind, form) for kind in KINDS for form in FORMS]


def opened(sae) -> Dictionary:
    return Dictionary(sae, Place(Path("nowhere")))


def rows(dtype=torch.float64, requires_grad=False):
    draw = torch.Generator().manual_seed(5)
    return torch.randn(3, 7, D, generator=draw, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_codes_and_reconstructions_are_those_of_the_formula(kind, form):
    sae, x = random_sae(kind, form, torch.float64), rows()
    d = opened(sae)
    codes = d.encode(x)
    assert torch.allclose(codes.dense(), dense_codes(sae, x.view(-1, D)).view(3, 7, F), atol=1e-12)
    assert codes.shape == (3, 7, F) and len(codes) == 21
    assert torch.allclose(d.decode(codes, x), dense_output(sae, x.view(-1, D)).view(3, 7, -1), atol=1e-12)
    assert torch.equal(d(x), d.decode(codes, x))
    assert torch.equal(codes.l0, (codes.dense() > 0).sum(-1))
    assert torch.equal(codes.sparse_tensor().to_dense(), codes.dense().view(21, F))
    latent = int(codes.latents[0])
    assert torch.equal(codes.of_latent(latent), codes.dense()[..., latent])


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_the_evaluation_to_the_bit(kind):
    sae, x = random_sae(kind), rows(torch.float32).view(-1, D)
    theirs, ours = sae.encode(x, encode_topk), opened(sae).encode(x)
    assert torch.equal(theirs.latent_P, ours.latents) and torch.equal(theirs.value_P, ours.values)
    smooth = opened(sae).encode(x.clone().requires_grad_())
    assert torch.equal(smooth.values, ours.values) and smooth.values.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_larger_than_memory_is_read_in_tiles(kind, monkeypatch):
    sae, x = random_sae(kind, dtype=torch.float64), rows()
    sae.W_enc_FD = sae.W_enc_FD.T.contiguous().T  # as it lies in a file
    whole = opened(sae).encode(x)
    monkeypatch.setattr(encoding, "IN_MEMORY", 0.0)
    monkeypatch.setattr(encoding, "TILE_BYTES", 9 * D * 8)
    d = opened(sae)
    assert not d.fits
    assert torch.allclose(d.encode(x).dense(), whole.dense(), atol=1e-12)


def test_ties_in_tiles_go_to_the_lowest_latent(monkeypatch):
    sae = random_sae("topk", dtype=torch.float64, k=5)
    sae.W_enc_FD = torch.zeros_like(sae.W_enc_FD).T.contiguous().T
    sae.b_enc_F = torch.ones(F, dtype=torch.float64)
    monkeypatch.setattr(encoding, "IN_MEMORY", 0.0)
    monkeypatch.setattr(encoding, "TILE_BYTES", 9 * D * 8)
    assert opened(sae).encode(rows()).latents.view(-1, 5).unique(dim=0).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("kind", "form"), [(kind, "autoencoder") for kind in KINDS] + [("gated", "skip")])
def test_gradients_are_finite_differences(kind, form):
    d, x = opened(random_sae(kind, form, torch.float64)), rows(requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: d(each), x, eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(lambda each: d.encode(each).values, x, eps=1e-7, atol=1e-4)


def test_names_that_saelens_users_know():
    d = opened(random_sae("jumprelu"))
    assert d.W_enc.shape == (D, F) and d.W_dec.shape == (F, D)
    assert torch.equal(d.W_enc.T, d.sae.W_enc_FD) and d.b_enc.shape == (F,) and d.b_dec.shape == (D,)
    assert d.cfg["d_in"] == D and d.cfg["d_sae"] == F and d.cfg["architecture"] == "jumprelu"
    assert d.threshold is not None and d.scaling == 1.0 and d.num_latents == F and d.k is None
    assert opened(random_sae("topk")).cfg["k"] == 5
    with pytest.raises(AttributeError, match="b_gate"):
        _ = opened(random_sae("gated")).b_enc


def test_a_row_is_given_with_its_greatest_code_first():
    codes = opened(random_sae("relu")).encode(rows(torch.float32))
    latents, values = codes[-1]
    assert torch.equal(values, values.sort(descending=True).values)
    assert torch.equal(codes.dense().view(21, F)[-1][latents], values)
    assert len(list(codes)) == 21
    with pytest.raises(IndexError, match="row 21 of 21"):
        codes[21]


def test_dense_refuses_what_is_large():
    codes = opened(random_sae("relu")).encode(rows(torch.float32))
    with pytest.raises(ConfigError, match=r"dense\(\) of 21 rows and 40 latents"):
        codes.dense(limit=100)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda d: d.encode(torch.zeros(2, D + 1)), f"width {D + 1} for a dictionary of width {D}"),
        (lambda d: d.encode(torch.zeros(2, D, device="meta")), "rows on meta"),
        (lambda d: d.some([F]), f"latent {F} does not exist"),
        (lambda d: d.some([-1]), "latent -1 does not exist"),
        (lambda d: d.some([True]), "latent True does not exist"),
        (lambda d: d.decode(d.encode(torch.zeros(2, D))), "needs x"),
    ],
)
def test_bad_input_is_one_line(act, message):
    with pytest.raises(ConfigError, match=message) as error:
        act(opened(random_sae("relu", "skip")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_some_latents_have_the_codes_they_have_among_all(kind):
    d, x = opened(random_sae(kind, dtype=torch.float64)), rows().view(-1, D)
    some = d.some([7, 3, 31])
    threshold = None
    codes = d.encode(x).dense()[:, [7, 3, 31]]
    if kind == "topk":
        # With a threshold below every score, a latent counts as selected wherever its score is above zero.
        threshold = 0.0
        codes = ((x - d.b_dec) @ d.W_enc + d.b_enc).relu()[:, [7, 3, 31]]
    assert torch.allclose(some.codes(x, threshold), codes, atol=1e-12)
