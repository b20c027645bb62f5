"""SAELens' own evaluation, from an export alone: it finds the language model and our numbers."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_dist.analysis import cross_entropy as ce
from sae_dist.core.config import load_config
from sae_dist.core.types import TokenChunk
from sae_dist.export.saelens import load_exported
from sae_dist.kernels.reference import encode_topk
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import open_tokens
from tests.commands import train
from tests.integration.test_saelens import saelens_python as saelens_python

SEQUENCES = 24
KINDS = {"topk": [], "matryoshka": ["sae=matryoshka"]}
EVALUATES = """
import json, sys, torch
from datasets import Dataset
from safetensors.torch import load_file
from sae_lens import SAE
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.load_model import load_model
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
found = {}
data = Dataset.from_dict({"input_ids": load_file("ids.safetensors")["ids"].tolist()})
for export in sys.argv[1:]:
    sae = SAE.load_from_disk(export)
    said = sae.cfg.metadata
    model = load_model(
        said.model_class_name, said.model_name, model_from_pretrained_kwargs=said.model_from_pretrained_kwargs
    )
    store = ActivationsStore.from_sae(model, sae, dataset=data, streaming=False, store_batch_size_prompts=8)
    batches = len(data) // 8
    wanted = EvalConfig(
        batch_size_prompts=8, n_eval_reconstruction_batches=batches, compute_ce_loss=True,
        n_eval_sparsity_variance_batches=batches, compute_sparsity_metrics=True,
    )
    special = said.exclude_special_tokens
    metrics, _ = run_evals(sae, store, model, ActivationScaler(), wanted, exclude_special_tokens=special)
    found[export] = {name: value for part in metrics.values() for name, value in part.items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("evals")
    for kind, words in KINDS.items():
        train(folder, kind, "train_tokens=11520", "hook=layers.1", *words)
    return {kind: folder / "outputs" / kind for kind in KINDS}


def whole_sequences(cfg, facts) -> TokenChunk:
    """Held-out sequences that hold one document each, without padding: SAELens knows no borders."""
    once = dataclasses.replace(cfg.tokens, epochs=1)
    tokens = open_tokens(once, facts, lanes=1, seed=0, rows=2048, held_out=True)
    found: dict[str, list[torch.Tensor]] = {}
    for chunk in tokens.open(0, None):
        whole_N = (chunk.segment_NS == 1).all(1)
        for field in dataclasses.fields(chunk):
            if isinstance(value := getattr(chunk, field.name), torch.Tensor):
                found.setdefault(field.name, []).append(value[whole_N])
        if sum(map(len, found["ids_NS"])) >= SEQUENCES:
            kept = {name: torch.cat(parts)[:SEQUENCES] for name, parts in found.items()}
            return dataclasses.replace(chunk, **kept)
    raise AssertionError("there are not enough long documents")


def test_ce_and_l0_are_ours(exports, saelens_python, tmp_path):
    cfg = load_config(exports["topk"] / "config.yaml")
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    chunk = whole_sequences(cfg, facts)
    assert chunk.ids_NS.shape == (SEQUENCES, cfg.tokens.context)
    save_file({"ids": chunk.ids_NS.contiguous()}, tmp_path / "ids.safetensors")
    done = subprocess.run(
        [saelens_python, "-c", EVALUATES, *(run / "export" for run in exports.values())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])

    device = torch.device("cpu")
    llm = FrozenLlm.load(cfg.llm, facts, device=device, dtype=torch.float32, with_head=True)
    saes = {kind: load_exported(run / "export") for kind, run in exports.items()}
    seen: list[torch.Tensor] = []
    llm.logits(chunk, lambda rows: seen.append(rows) or rows)
    acts = ce.replacements(saes, seen[0].mean(0), encode_topk, None)
    ours = ce.cross_entropy(llm, iter([chunk]), acts, 1)
    for kind, sae in saes.items():
        found, mine = theirs[str(exports[kind] / "export")], ours[kind]
        l0 = len(sae.encode(seen[0], encode_topk).latent_P) / len(seen[0])
        assert found["l0"] == pytest.approx(l0, rel=0.01)
        assert found["ce_loss_without_sae"] == pytest.approx(mine["ce_clean"], rel=0.01)
        assert found["ce_loss_with_sae"] == pytest.approx(mine["ce_sae"], rel=0.01)
        assert mine["ce_sae"] > 1.01 * mine["ce_clean"], "else nothing was compared"
