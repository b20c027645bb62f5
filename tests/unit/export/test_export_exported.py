"""Codes and reconstructions of a finished dictionary against the dense formulas, in fp64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_dist.config.run import RunConfig
from sae_dist.dictionary.base import dictionary_class
from sae_dist.export import exported
from sae_dist.export.exported import ExportedSae
from sae_dist.export.fold import tensor_names, to_exported, to_tensors
from sae_dist.kernels import reference, screen, torch_backend
from tests.helpers.dictionaries import (
    FORMS,
    KINDS,
    OUT,
    D,
    F,
    K,
    dense_codes,
    dense_output,
    random_sae,
    to_dense,
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [7, 4096])
def test_codes_and_output_are_those_of_the_formula(kind, form, tile, monkeypatch):
    monkeypatch.setattr(exported, "LATENT_TILE", tile)
    sae = random_sae(kind, form, torch.float64)
    x = 2 * torch.randn(65, D, dtype=torch.float64)
    x[3] = -1e3 * sae.W_enc_FD.sum(0)
    for backend in (reference, torch_backend):
        codes = sae.encode(x, backend.encode_topk)
        dense = to_dense(codes, F)
        torch.testing.assert_close(dense, dense_codes(sae, x))
        assert codes.latent_P.dtype == codes.offsets_B.dtype == torch.int64
        assert len(codes.latent_P) == int((dense > 0).sum()), "codes of zero are left out"
        torch.testing.assert_close(sae.decode(codes, x), dense_output(sae, x))
    assert 0.02 < float((dense > 0).double().mean()) < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_code_and_batches_without_a_code(kind):
    sae = random_sae(kind)
    for name in ("b_enc_F", "b_gate_F"):
        bias = getattr(sae, name)
        if bias is not None:
            bias.fill_(-1e6)
    x = torch.randn(4, D)
    codes = sae.encode(x, torch_backend.encode_topk)
    assert len(codes.latent_P) == 0 and codes.offsets_B.tolist() == [0] * 4
    assert torch.equal(sae.decode(codes, x), sae.b_dec_E.expand(4, D))


def test_a_threshold_is_not_passed_by_being_equal_to_it():
    eye = torch.eye(2)
    sae = ExportedSae(
        kind="jumprelu",
        W_enc_FD=eye,
        W_dec_FE=eye,
        b_dec_E=torch.zeros(2),
        b_enc_F=torch.zeros(2),
        threshold_F=torch.tensor([1.0, -1.0]),
    )
    codes = sae.encode(torch.tensor([[1.0, -0.5], [1.5, 0.5]]), torch_backend.encode_topk)
    assert to_dense(codes, 2).tolist() == [[0.0, 0.0], [1.5, 0.5]]


class Largest(TorchDispatchMode):
    """The most elements that an operation returned."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.seen = max(self.seen, each.numel())
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_all_latents_is_never_held(kind, monkeypatch):
    monkeypatch.setattr(exported, "LATENT_TILE", 64)
    monkeypatch.setattr(torch_backend, "LATENT_TILE", 64)
    monkeypatch.setattr(screen, "ROW_TILE", 16)
    monkeypatch.setattr(screen, "LATENT_TILE", 512)
    wide, rows = 4096, 256
    sae = random_sae(kind, "skip", F=wide, D=4, out=4)
    for name in ("b_enc_F", "b_gate_F"):
        if getattr(sae, name) is not None:
            getattr(sae, name).sub_(4.0)
    x = torch.randn(rows, 4)
    with Largest() as largest:
        sae.decode(sae.encode(x, torch_backend.encode_topk), x)
    assert largest.seen < rows * wide / 16


def checkpoint(kind: str, form: str, dtype=torch.float64) -> tuple[RunConfig, dict, ExportedSae]:
    """A config, the tensors that its training would leave, and the dictionary that these are when scaled."""
    used = {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}.get(kind, kind)
    sae = random_sae(used, form, dtype)
    cfg = RunConfig()
    cfg.sae.kind, cfg.sae.k, cfg.sae.num_latents = kind, K, F
    cfg.hook, cfg.target_hook = "layers.1:in", None if form == "autoencoder" else "layers.1:out"
    cfg.sae.skip = form == "skip"
    tensors = {"W_enc": sae.W_enc_FD, "W_dec": sae.W_dec_FE, "b_dec": sae.b_dec_E, "W_skip": sae.W_skip_ED}
    tensors |= {"b_enc": sae.b_enc_F, "b_gate": sae.b_gate_F, "b_mag": sae.b_mag_F, "r_mag": sae.r_mag_F}
    if kind == "jumprelu":
        tensors["log_threshold"] = sae.threshold_F.log()
    elif used == "jumprelu":
        sae.threshold_F.fill_(0.8)
        tensors["threshold"] = torch.tensor(0.8, dtype=dtype)
    return cfg, {name: value for name, value in tensors.items() if value is not None}, sae


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [*KINDS, "batchtopk", "matryoshka"])
def test_folding_the_scales_moves_a_dictionary_to_raw_space(kind, form):
    cfg, tensors, trained = checkpoint(kind, form)
    assert set(tensor_names(cfg, dictionary_class(kind))) == set(tensors)
    s_in, s_out = (0.037, 0.037) if form == "autoencoder" else (0.037, 5.3)
    folded = to_exported(
        cfg, dictionary_class(kind), tensors, [s_in] if form == "autoencoder" else [s_in, s_out]
    )
    x = 2 * torch.randn(64, D, dtype=torch.float64) / s_in
    torch.testing.assert_close(dense_codes(folded, x), dense_codes(trained, x * s_in) / s_out)
    torch.testing.assert_close(dense_output(folded, x), dense_output(trained, x * s_in) / s_out)
    assert (dense_codes(folded, x) > 0).any()
    assert torch.equal(folded.W_dec_FE, trained.W_dec_FE), "decoder rows stay"
    assert (folded.kind, folded.transcoder) == (trained.kind, trained.transcoder)
    assert folded.trained_as == (kind if kind in ("batchtopk", "matryoshka") else None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [*KINDS, "batchtopk", "matryoshka"])
def test_folding_a_shift(kind, form):
    cfg, tensors, trained = checkpoint(kind, form)
    cfg.activations.scaling = "centred"
    s_in, s_out = (0.037, 0.037) if form == "autoencoder" else (0.037, 5.3)
    m_in, m_out = (
        3 * torch.randn(D, dtype=torch.float64),
        torch.randn(len(trained.b_dec_E), dtype=torch.float64),
    )
    if form == "autoencoder":
        tensors["shift"], m_out = m_in, m_in
    else:
        tensors["shift"] = torch.cat([m_in, m_out])
    assert set(tensor_names(cfg, dictionary_class(kind))) == set(tensors)
    folded = to_exported(
        cfg, dictionary_class(kind), tensors, [s_in] if form == "autoencoder" else [s_in, s_out]
    )
    x = 2 * torch.randn(64, D, dtype=torch.float64) / s_in
    inner = (x - m_in) * s_in
    torch.testing.assert_close(dense_codes(folded, x), dense_codes(trained, inner) / s_out)
    torch.testing.assert_close(dense_output(folded, x), dense_output(trained, inner) / s_out + m_out)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [*KINDS, "batchtopk", "matryoshka"])
def test_training_that_begins_with_an_export_begins_with_the_weights_that_it_was_made_of(kind, form):
    cfg, tensors, trained = checkpoint(kind, form)
    cfg.activations.scaling = "centred"
    E = len(trained.b_dec_E)
    scales = [0.037] if form == "autoencoder" else [0.037, 5.3]
    shift = 3 * torch.randn(D if form == "autoencoder" else D + E, dtype=torch.float64)
    folded = to_exported(cfg, dictionary_class(kind), tensors | {"shift": shift}, scales)
    back = to_tensors(dictionary_class(kind), folded, scales, shift, unit_rows=False)
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        torch.testing.assert_close(back[name], value)
    # Of unit rows, and the same dictionary where codes are not ranked.
    folded.W_dec_FE = folded.W_dec_FE * torch.linspace(0.5, 2, F, dtype=torch.float64)[:, None]
    unit = to_tensors(dictionary_class(kind), folded, scales, shift, unit_rows=True)
    torch.testing.assert_close(unit["W_dec"].norm(dim=1), torch.ones(F, dtype=torch.float64))
    if kind in ("relu", "jumprelu", "gated"):
        again = to_exported(cfg, dictionary_class(kind), unit | {"shift": shift}, scales)
        x = 2 * torch.randn(64, D, dtype=torch.float64) / 0.037
        torch.testing.assert_close(dense_output(again, x), dense_output(folded, x))


def test_every_field_moves_to_the_device():
    sae = random_sae("gated", "skip").to(torch.device("meta"))
    names = ("W_enc_FD", "W_dec_FE", "b_dec_E", "b_gate_F", "b_mag_F", "r_mag_F", "W_skip_ED")
    assert all(getattr(sae, name).is_meta for name in names)
    assert sae.transcoder and sae.W_dec_FE.shape == (F, OUT)
