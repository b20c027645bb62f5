"""A run in Python: what its dictionary does to the model is what the evaluation measured."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

import sae_dist as sd
from sae_dist.config.run import load_config
from sae_dist.core.errors import ConfigError
from sae_dist.llm.architecture import text_part
from sae_dist.llm.facts import position_offset
from sae_dist.llm.inputs import model_inputs
from sae_dist.llm.next_token import targets
from sae_dist.tokens.source import held_out_tokens
from tests.helpers.commands import train

TOKENS = 800


@pytest.fixture(scope="module")
def run(folder):
    words = ["train_tokens=1536", "hook=layers.1", "tokens.max_norm_multiple=null"]
    train(folder, "used", *words, f"eval.tokens={TOKENS}", f"eval.ce_tokens={TOKENS}", "eval.baselines=false")
    return folder / "outputs" / "used"


def packed(lm, chunk):
    return model_inputs(
        chunk.ids_NS,
        chunk.segment_NS,
        chunk.position_NS,
        lm.reader,
        text_part(lm.model.config),
        first_position=position_offset(lm.model),
        causal=True,
        packed=True,
        dtype=lm.dtype,
    )


@torch.no_grad()
def nats(d, lm, cfg, **how) -> float:
    """Cross-entropy on the evaluation's text, with the dictionary attached."""
    total = count = kept = 0
    source = held_out_tokens(cfg.tokens, lm.facts, seed=cfg.seed, rows=cfg.shuffle.chunk_rows)
    with d.attach(lm, **how):
        for chunk in source.open(0, None):
            logits = lm(**packed(lm, chunk)).logits
            at = targets(chunk)
            total += float(cross_entropy(logits[:, :-1][at], chunk.ids_NS[:, 1:][at], reduction="sum"))
            count += int(at.sum())
            kept += int(chunk.keep_NS.sum())
            if kept >= TOKENS:
                break
    return total / count


def test_attached_it_costs_what_the_evaluation_says(run):
    d, cfg = sd.load(run), load_config(run / "config.yaml")
    lm, said = sd.model(d), json.loads((run / "summary.json").read_text())
    assert d.rate is not None and d.num_latents == 1024
    assert nats(d, lm, cfg) == pytest.approx(said["ce_clean"], rel=1e-5)
    assert nats(d, lm, cfg, error=False) == pytest.approx(said["ce_sae"], rel=1e-5)
    nothing = {"error": False, "bias": False, "edit": sd.ablate()}
    assert nats(d, lm, cfg, **nothing) == pytest.approx(said["ce_zero_ablated"], rel=1e-5)


def test_a_run_an_export_and_a_copy_of_it_are_the_same(run, tmp_path):
    x = torch.randn(20, 256)
    whole = sd.load(run)
    for where in (run / "export", run / "export" / "sae_weights.safetensors", str(run)):
        d = sd.load(where)
        assert torch.equal(d.encode(x).dense(), whole.encode(x).dense()) and d.hook == whole.hook
    for name in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / name).write_bytes((run / "export" / name).read_bytes())
    alone = sd.load(tmp_path)
    assert alone.place.run is None and alone.place.model_name == "embedded"
    lm = sd.model(alone)
    with alone.attach(lm) as a, torch.no_grad():
        lm(lm.ids("import os")[None])
    assert int(a.codes.l0.sum()) > 0


def test_a_format_is_not_chosen_for_a_run(run):
    with pytest.raises(ConfigError, match="format=sparsify: .* is a run"):
        sd.load(run, format="sparsify")


def test_a_run_without_an_export_is_said(run, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(ConfigError, match="has no export yet; write one: sae-dist export"):
        sd.load(tmp_path)
