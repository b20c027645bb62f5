"""What is known of the whole model before training: a head that is not there, and layers that do not load."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm import whole
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.whole import load_to_splice, why_no_head, why_no_room, why_not_held, why_not_spliced
from tests.helpers.tiny_llms import EMBEDDED, packed_chunk, save_tiny

CPU = torch.device("cpu")


def config(path: str) -> LlmConfig:
    return LlmConfig(name=path, dtype="float32")


def facts_of(path: str):
    return llm_facts(config(path), "layers.1" if "gpt2" not in path else "h.1")[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A whole model, and its base saved alone, of one that ties its head and one that does not."""
    from transformers import AutoModel

    root, found = tmp_path_factory.mktemp("models"), {}
    for kind in ("llama", "gpt2"):
        found[kind] = save_tiny(kind, root / kind)
        base = root / f"{kind}_base"
        AutoModel.from_pretrained(found[kind]).save_pretrained(base)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(root / kind / name, base)
        found[f"{kind}_base"] = str(base)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2_base"])
def test_a_head_that_is_there_or_tied_is_found(name, models):
    facts = facts_of(models[name])
    assert why_not_spliced(config(models[name]), facts, CPU) is None
    llm, reason = load_to_splice(config(models[name]), facts, CPU)
    assert reason is None and llm.logits(packed_chunk(), None).shape[-1] == facts.vocab_size


def test_a_head_that_is_not_there_is_known_without_loading_and_the_hook_still_works(models):
    path = models["llama_base"]
    reason = why_not_spliced(config(path), facts_of(path), CPU)
    assert reason is not None and "lm_head" in reason and path in reason
    llm, found = load_to_splice(config(path), facts_of(path), CPU)
    assert found == reason
    assert len(llm.activations(packed_chunk())) == int(packed_chunk().keep_NS.sum())


def test_older_names_of_weights_are_decided_by_loading(models, tmp_path, monkeypatch):
    path = shutil.copytree(models["llama"], tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    weights["elsewhere"] = weights.pop("lm_head.weight")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    tried = []
    monkeypatch.setattr(whole, "whole", lambda *given: tried.append(given))
    assert why_no_head(config(str(path)), facts_of(str(path))) is None and len(tried) == 1


def test_names_come_from_the_index_of_a_checkpoint_in_several_files(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.b": "x"}}))
    assert whole.stored_names(tmp_path) == ["a.b"]
    assert whole.stored_names(tmp_path / "no folder") == []


def test_layers_behind_the_hook_that_do_not_load_leave_cross_entropy_out_alone(models, monkeypatch):
    def fails(*_given):
        raise ConfigError("packed documents see each other")

    monkeypatch.setattr(whole, "whole", fails)
    llm, reason = load_to_splice(config(models["llama"]), facts_of(models["llama"]), CPU)
    assert reason == "packed documents see each other" and len(llm.activations(packed_chunk()))


def test_a_model_larger_than_memory_is_run_up_to_its_hook(monkeypatch):
    cfg, facts = config("embedded"), llm_facts(config("embedded"), None)[0]
    room = (whole.weights_bytes(facts, "float32") + whole.weights_bytes(facts, "float32", whole=True)) / 2
    for module in ("whole", "fit"):
        monkeypatch.setattr(f"sae_dist.llm.{module}.memory_bytes", lambda device: room / whole.USABLE)
    assert why_not_held(facts, "float32", CPU) is None
    reason = why_not_spliced(cfg, facts, CPU)
    assert reason is not None and "whole model" in reason
    llm, found = load_to_splice(cfg, facts, CPU)
    assert found == reason and not llm.with_head and EMBEDDED.is_dir()
    assert why_no_room(int(room * 1.01), CPU) and why_no_room(int(room * 0.99), CPU) is None
