"""Exports: the SAELens layout of every kind, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.core.errors import ConfigError
from sae_dist.export.saelens import export_saelens, load_exported
from tests.helpers.dictionaries import FORMS, KINDS, OUT, D, F, random_sae, unlisted

NAMES = {
    ("topk", "autoencoder"): "topk",
    ("relu", "autoencoder"): "standard",
    ("jumprelu", "autoencoder"): "jumprelu",
    ("gated", "autoencoder"): "gated",
    ("relu", "transcoder"): "transcoder",
    ("relu", "skip"): "skip_transcoder",
    ("jumprelu", "transcoder"): "jumprelu_transcoder",
    ("jumprelu", "skip"): "jumprelu_skip_transcoder",
    ("topk", "transcoder"): "topk_transcoder",
    ("topk", "skip"): "topk_skip_transcoder",
    ("gated", "transcoder"): "gated_transcoder",
    ("gated", "skip"): "gated_skip_transcoder",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_export_and_load_keep_every_bit(tmp_path, kind, form):
    sae = random_sae(kind, form)
    export_saelens(tmp_path / "export", sae)
    back = load_exported(tmp_path / "export")
    for name, value in vars(sae).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(back, name), value), name
        elif name != "metadata":
            assert getattr(back, name) == value, name
    assert back.metadata["hook_name"] == "h"
    config = json.loads((tmp_path / "export" / "cfg.json").read_text())
    assert config["architecture"] == NAMES[kind, form]
    only_ours = form != "autoencoder" and kind in ("topk", "gated")
    assert ("no class of SAELens" in config["metadata"].get("read_by", "")) == only_ours
    stored = load_file(tmp_path / "export" / "sae_weights.safetensors")
    assert stored["W_enc"].shape == (D, F)
    assert stored["W_dec"].shape == (F, D if form == "autoencoder" else OUT)
    names = sorted(p.name for p in (tmp_path / "export").iterdir())
    assert names == ["cfg.json", "sae_weights.safetensors", "sae_weights.safetensors.sha256"]


def test_the_kind_that_was_trained_is_kept(tmp_path):
    sae = random_sae("jumprelu")
    sae.trained_as, sae.metadata = "matryoshka", {"matryoshka_prefixes": [8, F]}
    export_saelens(tmp_path, sae)
    back = load_exported(tmp_path)
    assert (back.kind, back.trained_as) == ("jumprelu", "matryoshka")
    assert back.metadata["matryoshka_prefixes"] == [8, F]


def test_what_is_missing_or_misshapen_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cfg.json does not exist; give a folder with cfg.json"):
        load_exported(tmp_path)
    export_saelens(tmp_path, random_sae("topk"))
    unlisted(tmp_path)
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
        ("architecture", "temporal", "architecture=temporal is not supported, only .*jumprelu"),
        ("architecture", None, "has no key architecture"),
        ("architecture", "jumprelu", "has no tensor threshold"),
        ("architecture", "transcoder", "has no key d_out"),
        ("apply_b_dec_to_input", False, "apply_b_dec_to_input=False is not supported"),
        ("rescale_acts_by_decoder_norm", True, "rescale_acts_by_decoder_norm=True is not supported"),
        ("k", None, "has no key k"),
    ],
)
def test_another_computation_is_refused(tmp_path, key, value, message):
    export_saelens(tmp_path, random_sae("topk"))
    unlisted(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config.pop(key) if value is None else config.update({key: value})
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        load_exported(tmp_path)
