"""Evaluation from a run folder alone: dictionaries whose right numbers are known, on real activations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sae_dist.analysis.run import evaluate_run
from sae_dist.core.config import RunConfig
from sae_dist.core.errors import ConfigError
from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import export_saelens
from sae_dist.metrics.sinks import JsonlSink


def run_folder(folder: Path, cfg: RunConfig, sae: ExportedSae) -> Path:
    export_saelens(folder / "export", sae)
    OmegaConf.save(OmegaConf.structured(cfg), folder / "config.yaml")
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
    cfg.eval.tokens, cfg.eval.ce_tokens = 2048, 1024
    return cfg


def perfect(D: int) -> ExportedSae:
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    return ExportedSae(both, torch.zeros(2 * D), both, torch.zeros(D), D)


def test_a_perfect_dictionary_costs_the_llm_nothing(tmp_path):
    from sae_dist.llm.facts import llm_facts

    cfg = config()
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    result = evaluate_run(run_folder(tmp_path, cfg, perfect(facts.width)))
    assert result["fvu"] < 1e-6 < result["fvu_untrained"]
    assert result["ce_recovered"] == pytest.approx(1.0, abs=1e-3)
    assert result["ce_recovered_zero"] == pytest.approx(1.0, abs=1e-3)
    assert result["ce_clean"] < min(result["ce_mean_ablated"], result["ce_zero_ablated"])
    assert result["eval_tokens"] == 2048 and result["dead_fraction"] is None and result["dead_reason"]
    assert json.loads((tmp_path / "summary.json").read_text()) == result
    wanted = {"tokens", "steps", "fvu", "l0", "dead_fraction", "ce_recovered", "world_size", "status"}
    assert wanted <= set(result) and result["tokens"] == 100 and result["status"] == "finished"
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"loss_fvu.png", "latents_density.png"}


def test_a_dictionary_that_says_the_mean_recovers_nothing(tmp_path):
    from sae_dist.llm.facts import llm_facts

    cfg = config()
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    silent = perfect(facts.width)
    silent.b_enc_F.fill_(-1e9)
    result = evaluate_run(run_folder(tmp_path, cfg, silent))
    assert result["l0"] == 0 and result["fvu"] >= 1.0
    assert result["ce_sae"] == pytest.approx(result["ce_zero_ablated"], rel=1e-4)
    assert result["ce_recovered_zero"] == pytest.approx(0.0, abs=1e-3)


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
    OmegaConf.save(OmegaConf.structured(config()), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="export/cfg.json does not exist"):
        evaluate_run(tmp_path)
