"""Exports: folding the scale, the SAELens layout, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.core.errors import ConfigError
from sae_dist.export.exported import ExportedSae, fold_scale
from sae_dist.export.saelens import export_saelens, load_exported
from sae_dist.kernels.reference import encode_topk

F, D, K = 40, 12, 5


def random_sae(dtype: torch.dtype = torch.float32) -> ExportedSae:
    draw = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    W_dec = rand(F, D)
    return ExportedSae(
        rand(F, D), rand(F), W_dec / W_dec.norm(dim=1, keepdim=True), rand(D), K, {"hook_name": "h"}
    )


def reconstruct(sae: ExportedSae, x: torch.Tensor) -> torch.Tensor:
    return sae.decode(*sae.encode(x, encode_topk))


def test_folding_the_scale_moves_a_dictionary_to_raw_space():
    trained, scale = random_sae(torch.float64), 0.037
    folded = ExportedSae(
        *fold_scale(trained.W_enc_FD, trained.b_enc_F, trained.W_dec_FD, trained.b_dec_D, scale), k=K
    )
    x = torch.randn(64, D, dtype=torch.float64) / scale
    val_trained, idx_trained = trained.encode(x * scale, encode_topk)
    val, idx = folded.encode(x, encode_topk)
    assert torch.equal(idx, idx_trained)
    torch.testing.assert_close(val, val_trained / scale)
    torch.testing.assert_close(reconstruct(folded, x), reconstruct(trained, x * scale) / scale)
    torch.testing.assert_close(folded.W_dec_FD.norm(dim=1), torch.ones(F, dtype=torch.float64))


def test_decode_is_the_dense_product():
    sae, x = random_sae(), torch.randn(9, D)
    val, idx = sae.encode(x, encode_topk)
    dense = torch.zeros(9, F).scatter_(1, idx, val)
    torch.testing.assert_close(sae.decode(val, idx), dense @ sae.W_dec_FD + sae.b_dec_D)


def test_export_and_load_keep_every_bit(tmp_path):
    sae = random_sae()
    export_saelens(tmp_path / "export", sae)
    back = load_exported(tmp_path / "export")
    for name in ("W_enc_FD", "b_enc_F", "W_dec_FD", "b_dec_D"):
        assert torch.equal(getattr(back, name), getattr(sae, name))
    assert back.k == K and back.metadata["hook_name"] == "h"
    stored = load_file(tmp_path / "export" / "sae_weights.safetensors")
    assert stored["W_enc"].shape == (D, F) and stored["W_dec"].shape == (F, D)
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_what_is_missing_or_misshapen_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cfg.json does not exist; give a folder with cfg.json"):
        load_exported(tmp_path)
    export_saelens(tmp_path, random_sae())
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file({n: t for n, t in weights.items() if n != "b_dec"}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ConfigError, match="has no tensor b_dec; it has W_dec, W_enc, b_enc"):
        load_exported(tmp_path)
    save_file(weights | {"b_enc": torch.zeros(F + 1)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ConfigError, match=r"b_enc has shape \[41\], cfg.json says \[40\]"):
        load_exported(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        load_exported(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architecture", "jumprelu", "architecture=jumprelu is not supported"),
        ("apply_b_dec_to_input", False, "apply_b_dec_to_input=False is not supported"),
        ("rescale_acts_by_decoder_norm", True, "rescale_acts_by_decoder_norm=True is not supported"),
        ("k", None, "has no key k"),
    ],
)
def test_another_computation_is_refused(tmp_path, key, value, message):
    export_saelens(tmp_path, random_sae())
    config = json.loads((tmp_path / "cfg.json").read_text())
    config.pop(key) if value is None else config.update({key: value})
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        load_exported(tmp_path)
