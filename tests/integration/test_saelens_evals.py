"""SAELens' own evaluation and SAEBench's core, from an export alone: our language model and our numbers."""

import dataclasses
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_dist.config.run import load_config
from sae_dist.core.types import TokenChunk
from sae_dist.evaluation.quality import cross_entropy as ce
from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import load_exported
from sae_dist.kernels.reference import encode_topk
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.hub import resolve_name
from sae_dist.tokens.source import open_tokens
from tests.helpers.commands import train
from tests.integration.test_saelens import saelens_python as saelens_python

pytestmark = pytest.mark.long

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

# The model is none of TransformerLens' list, and its hook has another name there; the sequences are tokenised
# already, and SAELens would seek their tokeniser on the Hub; one kind of metrics per latent needs the other.
BENCH = """
import sys
import sae_lens.training.activations_store as store
import transformer_lens.loading_from_pretrained as loading
from sae_bench.evals.core.main import multiple_evals
from sae_lens import SAE
sae = SAE.load_from_disk(sys.argv[1])
loading.OFFICIAL_MODEL_NAMES.append(sae.cfg.metadata.model_name)
store.validate_pretokenized_dataset_tokenizer = lambda **_: None
sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
multiple_evals(
    [("ours", sae)], dataset=sys.argv[4], context_size=int(sys.argv[2]), eval_batch_size_prompts=8,
    n_eval_reconstruction_batches=int(sys.argv[3]), n_eval_sparsity_variance_batches=int(sys.argv[3]),
    compute_featurewise_density_statistics=True, compute_featurewise_weight_based_metrics=True,
    exclude_special_tokens_from_reconstruction=True, device="cpu", output_folder="bench",
)
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("evals")
    for kind, words in KINDS.items():
        # By its path: SAELens knows no model of the name `embedded`.
        train(
            folder,
            kind,
            "train_tokens=11520",
            "hook=layers.1",
            f"llm.name={resolve_name('embedded')}",
            *words,
        )
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


@dataclass
class Ours:
    """What we find on some sequences: the rows that the LLM's hook gave, and cross-entropies by kind.

    Attributes:
        after_first: clean, and with topk's reconstruction, without the token after the special one.
    """

    chunk: TokenChunk
    rows_BD: torch.Tensor
    saes: dict[str, ExportedSae]
    entropies: dict[str, dict[str, float]]
    after_first: dict[str, float]

    def l0(self, kind: str) -> float:
        return len(self.saes[kind].encode(self.rows_BD, encode_topk).latent_P) / len(self.rows_BD)


@pytest.fixture(scope="module")
def ours(exports) -> Ours:
    cfg = load_config(exports["topk"] / "config.yaml")
    facts, _ = llm_facts(cfg.llm, cfg.hook)
    chunk = whole_sequences(cfg, facts)
    assert chunk.ids_NS.shape == (SEQUENCES, cfg.tokens.context)
    llm = FrozenLlm.load(cfg.llm, facts, device=torch.device("cpu"), dtype=torch.float32, with_head=True)
    saes = {kind: load_exported(run / "export") for kind, run in exports.items()}
    seen: list[torch.Tensor] = []
    llm.logits(chunk, lambda rows: seen.append(rows) or rows)
    acts = ce.replacements(saes, seen[0].mean(0), encode_topk, None)

    def after_first(replace) -> float:
        logits, ids = llm.logits(chunk, replace)[:, 1:-1], chunk.ids_NS[:, 2:]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))

    entropies = ce.cross_entropy(llm, iter([chunk]), acts, 1)
    later = {"ce_clean": after_first(None), "ce_sae": after_first(acts["topk"])}
    return Ours(chunk, seen[0], saes, entropies, later)


def test_ce_and_l0_are_ours(exports, ours, saelens_python, tmp_path):
    save_file({"ids": ours.chunk.ids_NS.contiguous()}, tmp_path / "ids.safetensors")
    done = subprocess.run(
        [saelens_python, "-c", EVALUATES, *(run / "export" for run in exports.values())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    for kind, mine in ours.entropies.items():
        found = theirs[str(exports[kind] / "export")]
        assert found["l0"] == pytest.approx(ours.l0(kind), rel=0.01)
        assert found["ce_loss_without_sae"] == pytest.approx(mine["ce_clean"], rel=0.01)
        assert found["ce_loss_with_sae"] == pytest.approx(mine["ce_sae"], rel=0.01)
        assert mine["ce_sae"] > 1.01 * mine["ce_clean"], "else nothing was compared"


def test_the_core_of_saebench_finds_the_same(exports, ours, request, tmp_path):
    given = request.config.getoption("--peer-python", default=None) or ""
    python = dict(each.split("=", 1) for each in given.split(",") if each).get("saebench")
    if python is None:
        pytest.skip("a peer is missing: --peer-python saebench=/path/bin/python")
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"tokens": ids}) for ids in ours.chunk.ids_NS.tolist()]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines))
    context, batches = str(ours.chunk.ids_NS.shape[1]), str(SEQUENCES // 8)
    done = subprocess.run(
        [python, "-c", BENCH, exports["topk"] / "export", context, batches, tmp_path / "data"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    written = list((tmp_path / "bench").glob("*.json"))
    assert done.returncode == 0 and len(written) == 1, done.stderr[-2000:]
    groups = json.loads(written[0].read_text())["eval_result_metrics"]
    found = {name: value for group in groups.values() for name, value in group.items()}
    mine = ours.after_first
    assert found["l0"] == pytest.approx(ours.l0("topk"), rel=0.01)
    # It leaves out what follows a special token, and, as asked, leaves that token's activation as it is.
    assert found["ce_loss_without_sae"] == pytest.approx(mine["ce_clean"], rel=1e-3)
    assert found["ce_loss_with_sae"] == pytest.approx(mine["ce_sae"], rel=1e-3)
    # Its "total variance" squares the mean of x^2 over rows and dimensions, where the mean of x was meant.
    x_BD = ours.rows_BD.double()
    sae = ours.saes["topk"]
    out_BD = sae.decode(sae.encode(ours.rows_BD, encode_topk), ours.rows_BD)
    error = (x_BD - out_BD).pow(2).sum(1).mean()
    squares = x_BD.pow(2).sum(1).mean()
    assert found["explained_variance"] == pytest.approx(
        float(1 - error / (squares - x_BD.pow(2).mean() ** 2)), abs=0.03
    )
