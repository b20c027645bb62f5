"""Dictionaries of SAELens' layout as SAELens' versions and trainers wrote them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.core.errors import ConfigError
from sae_dist.export.published import load_published
from sae_dist.export.saelens import export_saelens
from tests.helpers.dictionaries import KINDS, D, K, dense_codes, dense_output, random_sae, unlisted


def rewrite(folder, config=None, weights=None):
    """An export with other keys and tensors; None in their place removes them."""
    unlisted(folder)
    for name, changes, load, save in (
        ("cfg.json", config, lambda p: json.loads(p.read_text()), lambda c, p: p.write_text(json.dumps(c))),
        ("sae_weights.safetensors", weights, load_file, save_file),
    ):
        content = load(folder / name)
        content.update(changes or {})
        save({key: value for key, value in content.items() if value is not None}, folder / name)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_that_does_not_subtract_b_dec(tmp_path, kind):
    sae = random_sae(kind)
    export_saelens(tmp_path, sae)
    rewrite(tmp_path, {"apply_b_dec_to_input": False})
    back, x = load_published(tmp_path), 2 * torch.randn(64, D)
    sae.transcoder = True  # whose encoder reads the input as it is
    torch.testing.assert_close(dense_codes(back, x), dense_codes(sae, x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dense_output(back, x), dense_output(sae, x), atol=1e-5, rtol=1e-5)
    assert not back.transcoder


def test_topk_over_codes_times_the_norm_of_their_row(tmp_path):
    sae, x = random_sae("topk"), 2 * torch.randn(64, D)
    norm = torch.linspace(0.1, 3, len(sae.W_dec_FE))
    export_saelens(tmp_path, sae)
    stored = load_file(tmp_path / "sae_weights.safetensors")
    other = {"W_dec": stored["W_dec"] * norm[:, None], "W_enc": stored["W_enc"] / norm}
    rewrite(tmp_path, {"rescale_acts_by_decoder_norm": True}, other | {"b_enc": stored["b_enc"] / norm})
    back = load_published(tmp_path)
    torch.testing.assert_close(dense_codes(back, x), dense_codes(sae, x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dense_output(back, x), dense_output(sae, x), atol=1e-5, rtol=1e-5)


def test_thresholds_as_logarithms_and_other_dtypes(tmp_path):
    sae = random_sae("jumprelu")
    export_saelens(tmp_path, sae)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    half = {name: value.half() for name, value in weights.items() if name != "threshold"}
    rewrite(tmp_path, weights=half | {"threshold": None, "log_threshold": sae.threshold_F.log()})
    back = load_published(tmp_path)
    assert sae.threshold_F is not None and back.threshold_F is not None
    torch.testing.assert_close(back.threshold_F, sae.threshold_F)
    assert back.W_dec_FE.dtype == torch.float32 and torch.equal(back.W_dec_FE, sae.W_dec_FE.half().float())


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_a_config_from_before_version_6(tmp_path, kind):
    sae = random_sae(kind)
    export_saelens(tmp_path, sae)
    flat = {
        "architecture": "standard",
        "activation_fn_str": kind,
        "activation_fn_kwargs": {"k": K} if kind == "topk" else {},
        "hook_point": "blocks.1.hook_resid_post",
        "model_name": "gpt2",
        "context_size": 64,
        "normalize_activations": False,
        "metadata": None,
        "k": None,
    }
    rewrite(tmp_path, flat)
    back = load_published(tmp_path)
    assert (back.kind, back.k) == (kind, sae.k)
    assert back.metadata == {
        "model_name": "gpt2",
        "hook_name": "blocks.1.hook_resid_post",
        "context_size": 64,
    }
    for value, says in (("tanh-relu", "activation_fn=tanh-relu is not supported, only relu and topk"),):
        rewrite(tmp_path, {"activation_fn_str": value})
        with pytest.raises(ConfigError, match=says):
            load_published(tmp_path)
    rewrite(tmp_path, {"activation_fn_str": kind, "finetuning_scaling_factor": True})
    with pytest.raises(ConfigError, match="finetuning_scaling_factor=true is not supported"):
        load_published(tmp_path)


@pytest.mark.parametrize(
    ("config", "weights", "says"),
    [
        ({"normalize_activations": "layer_norm"}, {}, "normalize_activations=layer_norm is not supported"),
        ({"architecture": "temporal"}, {}, "architecture=temporal is not supported"),
        ({"apply_b_dec_to_input": False}, {"b_dec": None}, "has no tensor b_dec"),
        ({"apply_b_dec_to_input": False}, {"W_enc": torch.zeros(40, D)}, "W_enc has shape.*it is transposed"),
        ({"rescale_acts_by_decoder_norm": True}, {"W_dec": None}, "has no tensor W_dec"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, config, weights, says):
    export_saelens(tmp_path, random_sae("topk"))
    rewrite(tmp_path, config, weights)
    with pytest.raises(ConfigError, match=says):
        load_published(tmp_path)
