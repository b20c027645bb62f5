"""Sets of dictionaries: found in grids, folders, other libraries' files and patterns; one for each place."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

import sae_dist as sd
from sae_dist.config.run import save_config
from sae_dist.config.sections import GridConfig
from sae_dist.core.errors import ConfigError
from sae_dist.export.circuit_tracer import export_circuit_tracer
from sae_dist.export.formats import FORMATS
from sae_dist.export.saelens import export_saelens
from sae_dist.interpret.sets import layer_of
from tests.helpers.dictionaries import D, K, random_sae, unlisted
from tests.helpers.in_use import dictionary
from tests.helpers.tiny_llms import TinyLlms
from tests.unit.config.test_config_rules import resolved
from tests.unit.export.test_export_formats import make
from tests.unit.export.test_export_scopes import save_qwen, save_scope, scope

LAYERS = (0, 1, 2, 10)


def of_layer(layer, kind="relu", model="gpt2"):
    """A transcoder of a layer's MLP, which no other layer's equals."""
    sae = make(kind, "transcoder")
    sae.b_dec_E = sae.b_dec_E + layer
    sae.metadata = {"model_name": model, "context_size": 64 + layer}
    sae.metadata |= {"hook_name": f"h.{layer}.mlp:in", "hook_name_out": f"h.{layer}.mlp"}
    return sae


def check(found, layers=LAYERS, names="h"):
    hooks = [(f"{names}.{n}.mlp:in", f"{names}.{n}.mlp") for n in layers]
    assert [tuple(hook.removesuffix(":out") for hook in pair) for pair in found.hooks] == hooks
    x = torch.randn(5, D)
    for layer, each in zip(layers, found, strict=True):
        torch.testing.assert_close(each(x), sd.Dictionary(of_layer(layer, each.kind), each.place)(x))


def test_a_grid_is_a_set(tmp_path):
    cfg = resolved("name=grid", "sae.num_latents=40")
    cfg.grid = GridConfig(hook=["h.10.mlp:in", "h.2.mlp:in"], target_hook=["h.10.mlp:out", "h.2.mlp:out"])
    save_config(cfg, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"hook=h.10.mlp_in,target_hook=h.10.mlp_out does not exist"):
        sd.load_set(tmp_path)
    for layer in (2, 10):
        own = resolved("sae.num_latents=40")
        own.hook, own.target_hook, own.tokens.context = f"h.{layer}.mlp:in", f"h.{layer}.mlp:out", 64 + layer
        run = tmp_path / f"hook=h.{layer}.mlp_in,target_hook=h.{layer}.mlp_out"
        export_saelens(run / "export", of_layer(layer))
        save_config(own, run / "config.yaml")
    found = sd.load_set(tmp_path)
    check(found, (2, 10))
    assert found.folder == tmp_path and (found.model_name, found.context) == (cfg.llm.name, 66)
    assert found.is_transcoder and found.num_latents == 80 and len(found) == 2
    assert "h.2.mlp:in to h.2.mlp:out: relu, 40 latents of width 12" in repr(found)


def test_a_folder_of_exports_a_pattern_and_a_list(tmp_path):
    for layer in LAYERS:
        export_saelens(tmp_path / "saelens" / f"layers.{layer}.mlp", of_layer(layer))
        FORMATS["sparsify"].write(tmp_path / "sparsify" / f"layers.{layer}.mlp", of_layer(layer, "topk"))
    check(sd.load_set(tmp_path / "saelens"))
    check(sd.load_set(str(tmp_path / "sparsify")))
    check(sd.load_set(f"{tmp_path}/saelens/layers.1*"), (1, 10))
    check(sd.load_set([tmp_path / "saelens" / f"layers.{n}.mlp" for n in (10, 0)]), (0, 10))
    one = sd.load_set(tmp_path / "saelens" / "layers.2.mlp")
    check(one, (2,))
    check(sd.load_set(tmp_path / "saelens")[1:], (1, 2, 10))


def test_several_of_one_place_are_named(tmp_path):
    for name in ("k=16", "k=32"):
        export_saelens(tmp_path / f"h.0,{name}", of_layer(0))
    with pytest.raises(
        ConfigError, match=r"2 dictionaries for h.0.mlp: .*h.0,k=16, .*k=32; give one of each"
    ):
        sd.load_set(tmp_path)
    check(sd.load_set(f"{tmp_path}/*,k=32"), (0,))
    export_saelens(tmp_path / "other", of_layer(1, model="org/llama"))
    with pytest.raises(ConfigError, match="has dictionaries of gpt2 and llama"):
        sd.load_set([tmp_path / "other", tmp_path / "h.0,k=16"])
    with pytest.raises(ConfigError, match="contains no dictionaries; give a grid, or a folder of runs"):
        (tmp_path / "empty").mkdir()
        sd.load_set(tmp_path / "empty")


def test_circuit_tracers_sets(tmp_path):
    export_circuit_tracer(tmp_path, *map(of_layer, LAYERS))
    check(sd.load_set(tmp_path))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"layers": None}))
    check(sd.load_set(unlisted(tmp_path)), names="layers")
    # Files of several runs that were put together, with the config of one.
    said = {"metadata": of_layer(2).metadata}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"layers": None} | said))
    found = sd.load_set(tmp_path)
    assert [layer_of(hook) for hook, _ in found.hooks] == list(LAYERS)


def test_gemma_scope_2_and_qwen_scope(tmp_path):
    for layer in LAYERS:
        folder = tmp_path / "transcoder_all" / f"layer_{layer}_width_16k_l0_small"
        folder.mkdir(parents=True)
        save_file(scope(of_layer(layer, "jumprelu"), lower=True), folder / "params.safetensors")
        point = f"model.layers.{layer}"
        config = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt"}
        config |= {"hf_hook_point_in": f"{point}.pre_feedforward_layernorm.output"}
        config |= {"hf_hook_point_out": f"{point}.post_feedforward_layernorm.output"}
        (folder / "config.json").write_text(json.dumps(config))
        save_qwen(tmp_path / f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}", random_sae("topk"), layer)
    found = sd.load_set(tmp_path / "transcoder_all")
    names = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    assert found.hooks == tuple(tuple(f"model.layers.{n}.{name}" for name in names) for n in LAYERS)
    found = sd.load_set(tmp_path / f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}")
    assert [hook for hook, _ in found.hooks] == [f"layers.{n}" for n in LAYERS]
    assert not found.is_transcoder and found.model_name == "Qwen/Qwen3-8B-Base"


def test_places_that_files_do_not_say_are_given_for_all_layers(tmp_path):
    for layer in LAYERS:
        place = f"gemma-scope-2b-pt-transcoders/layer_{layer}/width_16k/average_l0_6"
        save_scope(tmp_path / place, of_layer(layer, "jumprelu"))
    named = {"hook": "layers.*.mlp:in", "target_hook": "layers.*.mlp"}
    check(sd.load_set(tmp_path, **named), names="layers")
    save_scope(tmp_path / "plain", of_layer(3, "jumprelu"))
    with pytest.raises(ConfigError, match=r"plain does not say where in the model .*hook='layers.\*.mlp:in'"):
        sd.load_set([tmp_path / "plain"], transcoder=True)
    with pytest.raises(ConfigError, match=r"plain has no number of a layer in its name"):
        sd.load_set([tmp_path / "plain"], **named)


def test_the_model_of_a_set(tmp_path_factory, tmp_path):
    name = TinyLlms(tmp_path_factory)("gpt2")
    found = sd.DictionarySet([dictionary(hook=f"h.{n}") for n in (1, 0)], tmp_path)
    assert [hook for hook, _ in found.hooks] == ["h.0", "h.1"]
    assert sd.model(found, name).name == name
    with pytest.raises(ConfigError, match="does not say its model"):
        sd.model(found)
    half = found.to(dtype=torch.float64)
    assert [each.dtype for each in half] == [torch.float64] * 2 and half.folder == tmp_path


def test_folders_of_the_hub_are_read_from_the_cache(tmp_path, monkeypatch):
    """Its files are links to files that are named by their content."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name, commit = f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}", "a" * 40
    for repo in (name, "scope"):
        root = tmp_path / f"models--org--{repo}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
    for layer in (0, 2):
        save_qwen(tmp_path / "files", random_sae("topk"), layer)
        for width in ("16k", "65k"):
            place = f"scope/transcoder_all/layer_{layer}_width_{width}/params.safetensors"
            (tmp_path / "files" / place).parent.mkdir(parents=True)
            save_file(scope(of_layer(layer, "jumprelu"), lower=True), tmp_path / "files" / place)
    for number, file in enumerate(sorted(each for each in (tmp_path / "files").rglob("*") if each.is_file())):
        inside = file.relative_to(tmp_path / "files")
        repo, *rest = inside.parts if len(inside.parts) > 1 else (name, inside.name)
        link = (tmp_path / f"models--org--{repo}" / "snapshots" / commit).joinpath(*rest)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.rename(tmp_path / f"blob{number}"))
    found = sd.load_set(f"org/{name}")
    assert [hook for hook, _ in found.hooks] == ["layers.0", "layers.2"]
    assert found.model_name == "Qwen/Qwen3-8B-Base" and found[0].k == K
    assert len(sd.load_set(f"org/{name}/layer2*")) == 1
    named = {"hook": "layers.*.mlp:in", "target_hook": "layers.*.mlp"}
    check(sd.load_set("org/scope/transcoder_all/*_width_16k", **named), (0, 2), names="layers")
    with pytest.raises(ConfigError, match="2 dictionaries for layers.0.mlp: .*width_16k, .*width_65k"):
        sd.load_set("org/scope/transcoder_all", **named)
    with pytest.raises(ConfigError, match="the repository org/scope has no other"):
        sd.load_set("org/scope/other/*")
    with pytest.raises(ConfigError, match="neither a folder here nor a repository"):
        sd.load_set("org/nowhere")
