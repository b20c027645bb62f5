"""Dictionaries of Gemma Scope and circuit-tracer, SAELens' training checkpoints, and folders of many."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sae_dist.core.errors import ConfigError
from sae_dist.export.circuit_tracer import load_circuit_tracer, why_no_set
from sae_dist.export.dictionary_learning import export_dictionary_learning
from sae_dist.export.formats import FORMATS, check_format
from sae_dist.export.importing import Imported, with_origin
from sae_dist.export.names import format_of, proposed_hook, start_folder
from sae_dist.export.published import load_published
from sae_dist.export.saelens import export_saelens
from tests.helpers.dictionaries import D, K, dense_codes, dense_output, random_sae, unlisted
from tests.unit.export.test_export_formats import F, make


def alike(back, sae, tolerance=1e-5):
    x = 2 * torch.randn(64, D)
    torch.testing.assert_close(dense_codes(back, x), dense_codes(sae, x), atol=tolerance, rtol=0)
    torch.testing.assert_close(dense_output(back, x), dense_output(sae, x), atol=tolerance, rtol=0)


def scope(sae, lower=False):
    """The tensors of Gemma Scope: an encoder that reads the input as it is."""
    moved = 0 if sae.transcoder else sae.W_enc_FD @ sae.b_dec_E
    found = {"W_enc": sae.W_enc_FD.T, "W_dec": sae.W_dec_FE, "b_enc": sae.b_enc_F - moved}
    found |= {"b_dec": sae.b_dec_E, "threshold": sae.threshold_F}
    if sae.W_skip_ED is not None:
        found["affine_skip_connection"] = sae.W_skip_ED.T
    if lower:
        found = {name.replace("W_", "w_"): each.contiguous() for name, each in found.items()}
    return found


def save_scope(folder, sae, **more):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: each.numpy() for name, each in scope(sae).items()}, **more)


QWEN = f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}"


def save_qwen(folder, sae, layer=3):
    """A layer of Qwen-Scope: an encoder that reads the input as it is; latents are columns of W_dec."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"W_enc": sae.W_enc_FD, "W_dec": sae.W_dec_FE.T.contiguous(), "b_dec": sae.b_dec_E}
    found["b_enc"] = sae.b_enc_F - sae.W_enc_FD @ sae.b_dec_E
    torch.save(found, folder / f"layer{layer}.sae.pt")


def test_qwen_scope(tmp_path):
    """k and model are in the name of the folder, the layer in that of the file."""
    sae = random_sae("topk")
    for layer in (3, 10):
        save_qwen(tmp_path / QWEN, sae, layer)
    with pytest.raises(ConfigError, match="has the files of 2 layers; give one of them: .*layer3.sae.pt"):
        Imported.read(tmp_path / QWEN, None)
    imported = Imported.read(tmp_path / QWEN / "layer10.sae.pt", None)
    alike(imported.sae, sae)
    says = {"sae": "topk", "sae.k": K, "llm.name": "Qwen/Qwen3-8B-Base", "hook": "layers.10"}
    assert {key: imported.says()[key] for key in says} == says
    cached = tmp_path / f"models--Qwen--{QWEN}" / "snapshots" / "0a1b"
    save_qwen(cached, sae)
    assert Imported.read(cached, None).says()["llm.name"] == "Qwen/Qwen3-8B-Base"
    save_qwen(tmp_path / "renamed", sae)
    with pytest.raises(ConfigError, match="layer3.sae.pt does not say k, which its folder's name has"):
        Imported.read(tmp_path / "renamed", None)
    torch.save({"W_enc": sae.W_enc_FD, "W_dec": sae.W_dec_FE}, tmp_path / "renamed" / "layer3.sae.pt")
    with pytest.raises(ConfigError, match="W_dec has shape .* it is transposed"):
        Imported.read(tmp_path / "renamed", None)


@pytest.mark.parametrize("form", ["autoencoder", "transcoder"])
def test_gemma_scope(tmp_path, form):
    """A transcoder is told by the names of its folders, by its widths, or by the user."""
    sae = random_sae("jumprelu", form, out=D)
    transcoder = form == "transcoder"
    place = f"gemma-scope-2b-pt-{'transcoders' if transcoder else 'res'}/layer_12/width_16k/average_l0_6"
    save_scope(tmp_path / place, sae)
    back = Imported.read(tmp_path / place, None).sae
    alike(back, sae)
    assert (back.kind, back.transcoder) == ("jumprelu", transcoder)
    if transcoder:
        save_scope(tmp_path / "plain", sae)
        alike(Imported.read(tmp_path / "plain", None, transcoder=True).sae, sae)
        wide = random_sae("jumprelu", form)
        save_scope(tmp_path / "wide", wide)
        alike(Imported.read(tmp_path / "wide", None).sae, wide)


@pytest.mark.parametrize("form", ["autoencoder", "transcoder", "skip"])
def test_gemma_scope_2(tmp_path, form):
    sae = random_sae("jumprelu", form, out=D)
    save_file(scope(sae, lower=True), tmp_path / "params.safetensors")
    hooks = {"hf_hook_point_in": "model.layers.5.output"}
    if form != "autoencoder":
        hooks = {"hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output"}
        hooks["hf_hook_point_out"] = "model.layers.5.post_feedforward_layernorm.output"
    said = {"architecture": "jump_relu", "model_name": "google/gemma-3-270m", "width": 40} | hooks
    (tmp_path / "config.json").write_text(json.dumps(said))
    imported = Imported.read(tmp_path, None)
    alike(imported.sae, sae)
    says = imported.says()
    assert says["llm.name"] == "google/gemma-3-270m" and says.get("sae.skip", False) == (form == "skip")
    expected = {"autoencoder": "model.layers.5"}.get(form, "model.layers.5.pre_feedforward_layernorm")
    assert says["hook"] == expected
    after = "model.layers.5.post_feedforward_layernorm"
    assert says.get("target_hook") == (None if form == "autoencoder" else after)
    (tmp_path / "config.json").write_text(json.dumps({"hf_hook_point_in": "model.layers.5.o_proj.input"}))
    assert Imported.read(tmp_path, None).says()["hook"] == "model.layers.5.o_proj:in"
    (tmp_path / "config.json").unlink()
    assert "hook" not in Imported.read(tmp_path, None).says()


def test_gemma_scope_files_that_are_wrong_or_mean_something_else(tmp_path):
    sae = random_sae("jumprelu")
    good = {name: each.numpy() for name, each in scope(sae).items()}
    path = tmp_path / "params.npz"
    cases = [
        (good | {"scaling_factor": np.full(F, 2.0)}, "a scaling_factor other than 1"),
        (good | {"W_enc": good["W_enc"][None]}, "w_enc has 3 dimensions; a cross-layer transcoder"),
        (good | {"threshold": np.array([{"a": 1}], dtype=object)}, "is not an .npz file of numbers"),
        (good | {"b_dec": np.array(["a"] * D)}, "is not an .npz file of numbers"),
        (good | {"b_dec": np.zeros(3, np.float32)}, r"b_dec has shape \[3\]"),
        ({name: each for name, each in good.items() if name != "W_enc"}, "has no tensor w_enc"),
        ({name: each for name, each in good.items() if name != "threshold"}, "has no tensor threshold"),
    ]
    for content, says in cases:
        np.savez(path, **content)
        with pytest.raises(ConfigError, match=says) as refusal:
            Imported.read(tmp_path, None)
        assert "\n" not in str(refusal.value)
    for content in (b"no archive", b""):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is not an .npz file of numbers"):
            Imported.read(tmp_path, None)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY broken")
    with pytest.raises(ConfigError, match="is not an .npz file of numbers"):
        Imported.read(tmp_path, None)


def test_circuit_tracer_reads_what_it_would_compute(tmp_path):
    """codes = x (x > threshold), no ReLU: a threshold below zero is written as zero."""
    sae = make("jumprelu", "skip")
    sae.threshold_F[::2] = -0.5
    FORMATS["circuit_tracer"].write(tmp_path, sae)
    weights = load_file(tmp_path / "layer_3.safetensors")
    x = 2 * torch.randn(64, D)
    pre = torch.nn.functional.linear(x, weights["W_enc"], weights["b_enc"])
    codes = pre * (pre > weights["activation_function.threshold"])
    torch.testing.assert_close(codes, dense_codes(sae, x))
    y = codes @ weights["W_dec"] + weights["b_dec"] + x @ weights["W_skip"].T
    torch.testing.assert_close(y, dense_output(sae, x), atol=1e-5, rtol=0)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["model_kind"] == "transcoder_set" and config["model_name"] == "gpt2"
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", "hook_mlp_out")


def test_circuit_tracer_as_others_write_it(tmp_path):
    sae = make("relu", "transcoder")
    names = {"W_enc": sae.W_enc_FD, "W_dec": sae.W_dec_FE, "b_enc": sae.b_enc_F, "b_dec": sae.b_dec_E}
    for layer in (0, 1, 10):
        tensors = {name: each.bfloat16().clone() for name, each in names.items()}
        save_file(tensors, tmp_path / f"layer_{layer}.safetensors")
    config = {"model_name": "Qwen/Qwen3-0.6B", "model_kind": "transcoder_set"}
    config |= {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out", "scan": "x"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="has the files of 3 layers; give one of them: .*layer_0.safet"):
        Imported.read(tmp_path, None)
    one = tmp_path / "layer_10.safetensors"
    assert format_of(one) == "circuit_tracer"
    imported = Imported.read(one, None)
    alike(imported.sae, sae, tolerance=0.1)
    says = imported.says()
    assert says["llm.name"] == "Qwen/Qwen3-0.6B"
    assert (says["hook"], says["target_hook"]) == ("layers.10.mlp:in", "layers.10.mlp")
    assert says["sae"] == "relu" and imported.sae.transcoder
    for text, error in (
        ("- 1", "holds no keys"),
        ("a: [", "is not YAML"),
        ("model_kind: cross_layer_transcoder", "only transcoder_set"),
        ("model_name: 3", "model_name=3 must be text"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=error):
            load_circuit_tracer(one)


@pytest.mark.parametrize(
    ("metadata", "holds"),
    [
        ({"hook_name": "model.layers.3.mlp:in", "hook_name_out": "model.layers.3.mlp"}, True),
        ({"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}, True),
        ({"hook_name": "model.layers.3", "hook_name_out": "model.layers.4"}, False),
        ({"hook_name": "model.layers.2.mlp:in", "hook_name_out": "model.layers.3.mlp"}, False),
        ({}, False),
        (
            {
                "model_name": "google/gemma-2-2b",
                "hook_name": "model.layers.3.mlp:in",
                "hook_name_out": "model.layers.3.post_feedforward_layernorm",
            },
            True,
        ),
        (
            {
                "model_name": "google/gemma-2-2b",
                "hook_name": "model.layers.3.mlp:in",
                "hook_name_out": "model.layers.3.mlp",
            },
            False,
        ),
    ],
)
def test_circuit_tracer_holds_transcoders_of_an_mlp(metadata, holds):
    sae = make("relu", "transcoder")
    sae.metadata = metadata
    if holds:
        check_format("circuit_tracer", sae)
        return
    with pytest.raises(ConfigError, match="only from the input of a layer's mlp to its output"):
        check_format("circuit_tracer", sae)


def test_a_checkpoint_of_saelens_training(tmp_path):
    """Factor of the activations, codes compared times their row's norm, one threshold for all."""
    sae, factor, norm = make("batchtopk"), 0.25, torch.linspace(0.5, 2, F)
    export_saelens(tmp_path, sae)
    unlisted(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config |= {"architecture": "batchtopk", "k": float(K), "rescale_acts_by_decoder_norm": True}
    config |= {"normalize_activations": "expected_average_only_in", "metadata": {"model_name": "gpt2"}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    # On factor * x, rows of length norm and codes divided by it.
    stored = {
        "W_enc": weights["W_enc"] / norm,
        "W_dec": weights["W_dec"] * norm[:, None] * factor,
        "b_enc": weights["b_enc"] * factor / (norm * factor),
        "b_dec": weights["b_dec"] * factor,
        "topk_threshold": weights["threshold"][0].double() * factor,
    }
    stored["W_enc"] = stored["W_enc"] / factor
    save_file(stored, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ConfigError, match="needs the factor of the activations.*activation_scaler.json"):
        load_published(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    imported = Imported.read(tmp_path, None)
    alike(imported.sae, sae)
    assert imported.says()["sae"] == "batchtopk" and imported.says()["sae.k"] == K
    for content, says in (("{}", "no key scaling_factor"), ('{"scaling_factor": "1"}', "must be a number")):
        (tmp_path / "activation_scaler.json").write_text(content)
        with pytest.raises(ConfigError, match=says):
            load_published(tmp_path)


def test_a_matryoshka_checkpoint_of_saelens(tmp_path):
    sae = make("matryoshka")
    export_saelens(tmp_path, sae)
    unlisted(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config |= {"architecture": "matryoshka_batchtopk", "k": K, "metadata": {}}
    config["matryoshka_widths"] = [F // 4, F // 2]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["topk_threshold"] = weights.pop("threshold")[0].clone()
    save_file(weights, tmp_path / "sae_weights.safetensors")
    imported = Imported.read(tmp_path, None)
    alike(imported.sae, sae)
    says = imported.says()
    assert says["sae"] == "matryoshka" and says["sae.prefixes"] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("k", [16, 16.0, 2.5, None])
def test_the_k_that_saelens_keeps_among_the_details_of_training(tmp_path, k):
    sae = make("jumprelu")
    export_saelens(tmp_path, sae)
    unlisted(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    details = {} if k is None else {"training_architecture_details": {"k": k, "topk_threshold_lr": 0.01}}
    config["metadata"] = {"training_architecture": "batchtopk"} | details
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    imported = Imported.read(tmp_path, None)
    says = imported.says()
    if k in (2.5, None):
        assert says["sae"] == "jumprelu" and "sae.k" not in says
    else:
        assert says["sae"] == "batchtopk" and says["sae.k"] == 16
        export_dictionary_learning(tmp_path, imported.sae)
        assert json.loads((tmp_path / "config.json").read_text())["trainer"]["k"] == 16


def test_a_folder_of_many_places_names_those_within(tmp_path):
    for layer in range(6):
        FORMATS["sparsify"].write(tmp_path / "pythia" / f"layers.{layer}.mlp", make("topk"))
    with pytest.raises(ConfigError) as refusal:
        format_of(tmp_path)
    said = str(refusal.value)
    assert "contains no dictionary itself" in said and said.endswith("and 2 more")
    assert f"{tmp_path}/pythia/layers.0.mlp, " in said and "\n" not in said
    with pytest.raises(ConfigError, match="first: sae-dist import .* sae.start=outputs/NAME"):
        start_folder(str(tmp_path / "pythia" / "layers.0.mlp"))
    assert format_of(tmp_path / "pythia" / "layers.0.mlp" / "sae.safetensors") == "sparsify"


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("pythia-160m/layers.10", "layers.10"),
        ("pythia-160m/layers.3.mlp", "layers.3.mlp"),
        ("gpt2/h.4.attn", "h.4.attn"),
        ("gpt2/blocks.8.hook_resid_pre", "blocks.8.hook_resid_pre"),
        ("run/resid_post_layer_8/trainer_2", "layers.8"),
        ("run/mlp_out_layer_8/trainer_2", "layers.8.mlp"),
        ("res/layer_20/width_16k/average_l0_71", "layers.20"),
        ("resid_post/layer_9_width_16k_l0_medium", "layers.9"),
        ("somewhere/dictionary", None),
    ],
)
def test_a_hook_by_the_names_of_folders(tmp_path, place, hook):
    assert proposed_hook(tmp_path / place) == hook


def test_what_the_user_gave_travels_on_and_the_files_words_stay_for_the_rest():
    ours = {"model_name": "mine", "hook_name": "model.layers.1", "hf_hook_name": "model.layers.1"}
    ours |= {"model_class_name": "AutoModelForCausalLM", "context_size": 256, "prepend_bos": True}
    theirs = {"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post", "hook_name_out": "x"}
    assert with_origin(theirs, ours, set()) == theirs
    named = {"model_name": "mine", "hook_name": "model.layers.1", "hf_hook_name": "model.layers.1"}
    named["model_class_name"] = "AutoModelForCausalLM"
    assert with_origin({}, ours, set()) == named
    assert with_origin(theirs, ours, {"llm.name"}) == theirs | {"model_name": "mine"}
    given = with_origin(theirs, ours, {"hook", "tokens.context"})
    assert given == named | {"model_name": "gpt2", "context_size": 256}
    assert with_origin({"a": 1}, {}, {"hook"}) == {"a": 1}
    assert replace(make("topk"), metadata=given).metadata["context_size"] == 256


def test_a_set_is_one_that_circuit_tracer_loads():
    def heads(*layers, **sizes):
        found = [make("relu", "transcoder", **sizes) for _ in layers]
        for layer, sae in zip(layers, found, strict=True):
            sae.metadata = {"hook_name": f"h.{layer}.mlp:in", "hook_name_out": f"h.{layer}.mlp"}
        return found

    assert why_no_set(heads(1, 0, 2)) is None
    assert why_no_set(heads(0, 2)) == "transcoders of the layers 0, 2, only of every layer from 0 on"
    assert why_no_set([*heads(0), *heads(1, F=2 * F)]).startswith(f"sets of {F} and {2 * F} latents")
    skip = make("relu", "skip")
    skip.metadata = heads(1)[0].metadata
    assert why_no_set([*heads(0), skip]) == "sets with and without skip connections, only one of both"


def test_circuit_tracers_topk_is_not_read_as_relu(tmp_path):
    FORMATS["circuit_tracer"].write(tmp_path, make("relu", "transcoder"))
    config = yaml.safe_load((unlisted(tmp_path) / "config.yaml").read_text())
    for more, kind in (({"activation": "relu"}, "relu"), ({"activation": "topk", "k": K}, "topk")):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | more))
        back = Imported.read(tmp_path, None).sae
        assert (back.kind, back.k) == (kind, more.get("k"))
    for more, error in (
        ({"activation": "topk"}, "has no key k"),
        ({"activation": "gelu"}, "only relu, jumpr"),
    ):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | more))
        with pytest.raises(ConfigError, match=error):
            Imported.read(tmp_path, None)
