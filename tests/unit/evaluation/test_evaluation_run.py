"""Evaluation from a run folder alone: dictionaries whose right numbers are known, on real activations."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, load_config, save_config
from sae_dist.core.errors import ConfigError
from sae_dist.evaluation.report.latents import open_source
from sae_dist.evaluation.summary import evaluate_run
from sae_dist.evaluation.table import format_table
from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import export_saelens
from sae_dist.metrics.sinks import JsonlSink
from sae_dist.train.end import left_out
from tests.helpers.tiny_llms import EMBEDDED


def run_folder(folder: Path, cfg: RunConfig, sae: ExportedSae) -> Path:
    export_saelens(folder / "export", sae)
    save_config(resolve(cfg, None, 8), folder / "config.yaml")
    sink = JsonlSink(folder / "metrics.jsonl", 0)
    sink.write({"step": 1, "tokens": 100, "loss/fvu": 0.5})
    sink.close()
    (folder / "summary.json").write_text(
        json.dumps({"tokens": 100, "steps": 1, "world_size": 2, "status": "trained"})
    )
    return folder


def config() -> RunConfig:
    cfg = RunConfig(device="cpu", kernels="torch", name="a-run")
    cfg.sae.kind = "topk"
    cfg.sae.num_latents = 8
    cfg.optim.kind = "adam"
    cfg.llm.dtype = "float32"
    cfg.llm.name, cfg.tokens.kind, cfg.activations.kind = "embedded", "text", "llm"
    cfg.shuffle.chunk_rows = 512
    cfg.eval.tokens, cfg.eval.ce_tokens = 1024, 512
    return cfg


def perfect(D: int) -> ExportedSae:
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    return ExportedSae(
        kind="topk", W_enc_FD=both, b_enc_F=torch.zeros(2 * D), W_dec_FE=both, b_dec_E=torch.zeros(D), k=D
    )


def test_a_perfect_dictionary_costs_the_llm_nothing(tmp_path):
    from sae_dist.llm.facts import llm_facts

    cfg = config()
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    result = evaluate_run(run_folder(tmp_path, cfg, perfect(facts.width)))
    assert result["fvu"] < 1e-6 < result["fvu_untrained"]
    assert result["ce_recovered"] == pytest.approx(1.0, abs=1e-3)
    assert result["ce_recovered_zero"] == pytest.approx(1.0, abs=1e-3)
    assert result["ce_clean"] < min(result["ce_mean_ablated"], result["ce_zero_ablated"])
    assert result["eval_tokens"] == 1024 and result["dead_fraction"] is None and result["dead_reason"]
    assert result["eval_extent"] == "short" and "a short evaluation" in format_table(result)
    assert "a short evaluation" not in format_table(result | {"eval_extent": "full"})
    assert json.loads((tmp_path / "summary.json").read_text()) == result
    wanted = {"tokens", "steps", "fvu", "l0", "dead_fraction", "ce_recovered", "world_size", "status"}
    assert wanted <= set(result) and result["tokens"] == 100 and result["status"] == "finished"
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"loss_fvu.png", "latents_density.png"}


def test_a_dictionary_that_says_the_mean_recovers_nothing(tmp_path):
    from sae_dist.llm.facts import llm_facts

    cfg = config()
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    silent = perfect(facts.width)
    assert silent.b_enc_F is not None
    silent.b_enc_F.fill_(-1e9)
    result = evaluate_run(run_folder(tmp_path, cfg, silent))
    assert result["l0"] == 0 and result["fvu"] >= 1.0
    assert result["ce_sae"] == pytest.approx(result["ce_zero_ablated"], rel=1e-4)
    assert result["ce_recovered_zero"] == pytest.approx(0.0, abs=1e-3)


def identity_transcoder(width: int) -> ExportedSae:
    """Codes none, y_hat = the MLP's input itself."""
    return ExportedSae(
        kind="relu",
        W_enc_FD=torch.zeros(4, width),
        b_enc_F=torch.full((4,), -1.0),
        W_dec_FE=torch.eye(4, width),
        b_dec_E=torch.zeros(width),
        W_skip_ED=torch.eye(width),
        transcoder=True,
    )


def test_a_transcoder_is_spliced_into_the_llm_as_a_patched_forward_would(tmp_path):
    from sae_dist.llm.facts import llm_facts
    from sae_dist.llm.frozen import FrozenLlm
    from sae_dist.tokens.source import held_out_tokens

    cfg = config()
    cfg.hook, cfg.target_hook, cfg.sae.kind, cfg.sae.skip = (
        "layers.1.mlp:in",
        "layers.1.mlp:out",
        "relu",
        True,
    )
    cfg.tokens.max_norm_multiple = None
    facts, _ = llm_facts(cfg.llm, cfg.hook, cfg.target_hook)
    result = evaluate_run(run_folder(tmp_path, cfg, identity_transcoder(facts.width)))
    assert result["l0"] == 0 and result["fvu_pca"] is None and 0 < result["fvu_linear"] < 1 < result["fvu"]
    assert result["ce_clean"] < result["ce_sae"]
    assert json.loads((tmp_path / "summary.json").read_text()) == result

    llm = FrozenLlm.load(cfg.llm, facts, device=torch.device("cpu"), dtype=torch.float32, with_head=True)
    total = count = 0
    for chunk in held_out_tokens(cfg.tokens, facts, seed=cfg.seed, rows=cfg.shuffle.chunk_rows).open(0, None):
        if count >= cfg.eval.ce_tokens:
            break
        keep = chunk.keep_NS[..., None]
        handle = llm.base.get_submodule("layers.1.mlp").register_forward_hook(
            lambda _module, args, output, keep=keep: torch.where(keep, args[0], output)
        )
        with torch.no_grad():
            inputs = llm.inputs(chunk.ids_NS, chunk.segment_NS, chunk.position_NS)
            log_p = llm.model(**inputs).logits.log_softmax(-1)
        handle.remove()
        wanted = (chunk.segment_NS[:, 1:] == chunk.segment_NS[:, :-1]) & chunk.keep_NS[:, 1:]
        total -= float(log_p[:, :-1].gather(2, chunk.ids_NS[:, 1:, None])[..., 0][wanted].double().sum())
        count += int(wanted.sum())
    assert result["ce_tokens"] == count
    assert result["ce_sae"] == pytest.approx(total / count, rel=1e-5)


def test_a_target_that_comes_before_the_input_has_no_cross_entropy_and_says_why(tmp_path):
    from sae_dist.llm.facts import llm_facts

    cfg = config()
    cfg.hook, cfg.target_hook, cfg.sae.kind = "layers.1:out", "layers.1.mlp:out", "relu"
    facts, _ = llm_facts(cfg.llm, cfg.hook, cfg.target_hook)
    result = evaluate_run(run_folder(tmp_path, cfg, identity_transcoder(facts.width)))
    assert result["fvu"] > 0 and result["ce_recovered"] is None
    assert "target_hook before hook" in result["ce_reason"]


def base_alone(folder: Path) -> Path:
    """The embedded model as a fine-tuned base is saved: without its language head."""
    model = shutil.copytree(EMBEDDED, folder / "base_alone")
    weights = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("lm_head")}
    kept = {name.removeprefix("model."): tensor for name, tensor in kept.items()}
    save_file(kept, model / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return model


def test_a_model_without_a_head_leaves_cross_entropy_out_alone_and_that_is_known_before(tmp_path):
    from sae_dist.llm.facts import llm_facts

    cfg = config()
    cfg.llm.name = str(base_alone(tmp_path))
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    folder = run_folder(tmp_path / "run", cfg, perfect(facts.width))
    (line,) = left_out([load_config(folder / "config.yaml")], [facts.width], facts, torch.device("cpu"))
    result = evaluate_run(folder)
    assert result["status"] == "finished" and result["fvu"] < 1e-6 and result["eval_tokens"] == 1024
    assert result["ce_recovered"] is None and "lm_head" in result["ce_reason"]
    assert line.endswith(result["ce_reason"]) and "CE recovered: not measured" in format_table(result)
    shown = open_source(load_config(folder / "config.yaml"), torch.device("cpu"))
    assert shown.no_effects == result["ce_reason"] and next(shown.reads()).text is not None


def test_a_dictionary_larger_than_memory_is_left_out_and_that_is_known_before(tmp_path, monkeypatch):
    cfg = config()
    folder = run_folder(tmp_path, cfg, perfect(8))
    size = (folder / "export" / "sae_weights.safetensors").stat().st_size
    monkeypatch.setattr("sae_dist.llm.whole.memory_bytes", lambda device: size // 2)
    single = load_config(folder / "config.yaml")
    single.sae.num_latents = 16
    (line,) = left_out([single], [8], None, torch.device("cpu"))
    result = evaluate_run(folder)
    assert result["status"] == "finished" and result["fvu"] is None
    assert "holds the dictionary in one process" in result["fvu_reason"] and result["fvu_reason"][:20] in line


def test_a_run_on_an_activation_file_has_no_cross_entropy_and_says_why(tmp_path):
    rows = np.random.default_rng(0).standard_normal((40_000, 8), dtype=np.float32) + 3.0
    np.save(tmp_path / "rows.npy", rows)
    cfg = config()
    cfg.activations.kind, cfg.activations.path = "file", str(tmp_path / "rows.npy")
    cfg.eval.tokens = "10k"
    result = evaluate_run(run_folder(tmp_path / "run", cfg, perfect(8)))
    assert result["fvu"] < 1e-6 and 2000 < result["eval_tokens"] < 10_000
    assert result["ce_recovered"] is None and "come from a file" in result["ce_reason"]


def test_no_evaluation_leaves_the_fields_null(tmp_path):
    cfg = config()
    cfg.eval.tokens = 0
    result = evaluate_run(run_folder(tmp_path, cfg, perfect(8)))
    assert result["fvu"] is None and result["ce_recovered"] is None and result["ce_reason"] == "eval.tokens=0"


def test_a_folder_without_an_export_is_refused_by_name(tmp_path):
    save_config(resolve(config(), None, 8), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="export/cfg.json does not exist"):
        evaluate_run(tmp_path)
