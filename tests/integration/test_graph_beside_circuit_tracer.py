"""Graphs beside circuit-tracer's own, of the same transcoders, in an environment of its own.

`python -m venv ENV; ENV/bin/pip install torch "numpy<2"; ENV/bin/pip install circuit-tracer==0.5.0
transformer-lens==2.18.0 "pyarrow<21"` makes one: releases of transformer-lens from 4 on have no
HookedTransformer, and this one needs a NumPy that later ones of pyarrow refuse.
"""

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_dist.export.circuit_tracer import export_circuit_tracer, load_circuit_tracer
from sae_dist.graph.graph import Graph
from sae_dist.graph.prune import Selected, prune
from sae_dist.graph.trace import trace
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import as_model
from sae_dist.interpret.place import Place
from tests.helpers.dictionaries import random_sae
from tests.helpers.small_llm import LAYERS, WIDTH, save_small_llm
from tests.integration.test_handed_on import owner

pytestmark = pytest.mark.long
BOS, TARGETS, LATENTS = 0, [300, 301, 1999], 96

# What their own `from_pretrained` does for a model with a name of its own list.
TRACER = """
import json
from pathlib import Path
import numpy as np, torch, yaml
from transformer_lens import loading_from_pretrained as loading
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from circuit_tracer import attribute
from circuit_tracer.graph import compute_graph_scores, compute_node_influence, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.utils.hf_utils import load_transcoders
torch.set_num_threads(1)
asked = json.loads(Path("asked.json").read_text())
kind = dict(dtype=torch.float64)
hf = AutoModelForCausalLM.from_pretrained("llm", **kind)
cfg = loading.get_pretrained_model_config("llm", fold_ln=False, device="cpu", **kind)
bos = "<|bos|>"
tokenizer = PreTrainedTokenizerFast(tokenizer_file="llm/tokenizer.json", bos_token=bos, eos_token=bos)
tokenizer.save_pretrained("tokenizer")
model = TransformerLensReplacementModel(cfg, AutoTokenizer.from_pretrained("tokenizer"))
state = loading.get_pretrained_state_dict("llm", cfg, hf, **kind)
model.load_and_process_state_dict(
    state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
)
config = yaml.safe_load(Path("set/config.yaml").read_text())
layers = [f"set/layer_{n}.safetensors" for n in range(cfg.n_layers)]
found = load_transcoders(config | {"scan": "ours", "transcoders": layers}, torch.device("cpu"), **kind)
model._configure_replacement_model(found)
graph = attribute(
    torch.tensor(asked["ids"]), model, attribution_targets=torch.tensor(asked["targets"]), batch_size=64
)
kept = prune_graph(graph, 0.8, 0.98)
A = graph.adjacency_matrix.double()
weight = torch.zeros(len(A), dtype=A.dtype)
weight[-len(asked["targets"]):] = graph.logit_probabilities.double()
np.savez(
    "theirs.npz",
    adjacency=A.numpy(),
    features=graph.active_features.numpy(),
    activations=graph.activation_values.detach().numpy(),
    selected=graph.selected_features.numpy(),
    probabilities=graph.logit_probabilities.numpy(),
    influence=compute_node_influence(A, weight).numpy(),
    scores=np.array(compute_graph_scores(graph)),
    nodes=kept.node_mask.numpy(),
    links=kept.edge_mask.numpy(),
)
"""


def made(folder, kind: str, form: str) -> list[Dictionary]:
    """A model and a transcoder of each layer, exported as one set."""
    save_small_llm(folder)
    found = []
    for layer in range(LAYERS):
        sae = random_sae(kind, form, F=LATENTS, D=WIDTH, out=WIDTH)
        order = torch.randperm(LATENTS, generator=torch.Generator().manual_seed(layer))
        said = {"hook_name": f"layers.{layer}.mlp:in", "hook_name_out": f"layers.{layer}.mlp:out"}
        sae = replace(sae.tile(order), metadata={"model_name": "llm", **said})
        export_circuit_tracer(folder / "set", sae)
        read = load_circuit_tracer(folder / "set" / f"layer_{layer}.safetensors")
        found.append(Dictionary(read, Place(folder / "set", said=said)).to(dtype=torch.float64))
    return found


def ids() -> list[int]:
    return [BOS, *torch.randint(10, 2000, (11,), generator=torch.Generator().manual_seed(3)).tolist()]


def theirs(request, folder) -> dict[str, np.ndarray]:
    python = owner(request, "circuit_tracer")
    if subprocess.run([python, "-c", "import transformer_lens"], capture_output=True).returncode:
        pytest.skip(
            "circuit-tracer is there without transformer-lens; the top of this file says how to make it"
        )
    (folder / "asked.json").write_text(json.dumps({"ids": ids(), "targets": TARGETS}))
    done = subprocess.run([python, "-c", TRACER], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / "theirs.npz") as read:
        return dict(read)


def dense(graph: Graph, names: list[str]) -> np.ndarray:
    """The links between named nodes, 0 where there is none."""
    place = {name: number for number, name in enumerate(names)}
    found = np.zeros((len(names), len(names)))
    for row, column, weight in zip(
        graph.rows.tolist(), graph.columns.tolist(), graph.weights.tolist(), strict=True
    ):
        found[place[graph.nodes[row].id], place[graph.nodes[column].id]] = weight
    return found


@pytest.mark.parametrize(("kind", "form"), [("relu", "transcoder"), ("jumprelu", "skip")])
def test_every_edge_is_circuit_tracers(request, tmp_path, kind, form):
    dictionaries = made(tmp_path, kind, form)
    found = theirs(request, tmp_path)
    lm = as_model(AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float64).eval())
    whole = {"max_nodes": 10**6, "node_threshold": 1.0, "edge_threshold": 1.0}
    graph = trace(dictionaries, lm, ids(), targets=TARGETS, **whole)
    S, adjacency = len(ids()), found["adjacency"]
    features = [f"f_{layer}_{position}_{latent}" for layer, position, latent in found["features"].tolist()]
    assert len(found["selected"]) == len(features) == graph.latents[0], "theirs has a row for each"
    errors = [f"e_{layer}_{position}" for layer in range(LAYERS) for position in range(S)]
    names = [*features, *errors, *(f"t_{n}" for n in range(S)), *(f"l_{n}" for n in TARGETS)]
    # Ours has rows of what reaches a logit.
    own = np.array([name in graph.index for name in names])
    assert not adjacency[own][:, ~own].any() and own.sum() > 900
    # At the first position theirs has no errors, and keeps a skip connection, which ours takes for error.
    apart = {f"e_{layer}_0" for layer in range(LAYERS)} | ({"t_0"} if form == "skip" else set())
    same = np.array([name not in apart for name in names])
    ours = dense(graph, names)[own][:, same]
    assert (adjacency != 0).sum() > 100_000
    assert np.abs(ours - adjacency[own][:, same]).max() < 1e-6 * np.abs(adjacency).max()
    activations = dict(zip(features, found["activations"].tolist(), strict=True))
    latents = [node for node in graph.nodes if node.kind == "latent"]
    assert [node.activation for node in latents] == pytest.approx(
        [activations[node.id] for node in latents], rel=1e-5, abs=1e-5
    )
    assert [node.probability for node in graph.logits] == pytest.approx(
        found["probabilities"].tolist(), rel=1e-5
    )
    check_scores(adjacency, len(features), S, found)


def check_scores(adjacency, num_latents, num_tokens, found):
    """Influence, scores and what is pruned of their edges are theirs, by our formulas."""
    X, T = len(adjacency) - len(TARGETS), len(TARGETS)
    number_X = torch.arange(X)
    token_X = number_X >= X - num_tokens
    weight = torch.from_numpy(adjacency[np.r_[:num_latents, X : X + T], :X])
    selected = Selected(number_X, weight, (number_X >= num_latents) & ~token_X, token_X, num_latents)
    weight_T = torch.from_numpy(found["probabilities"]).double()
    pruned = prune(selected, weight_T, LAYERS, 0.8, 0.98)
    assert np.allclose(pruned.influence_X, found["influence"][:X], rtol=1e-9, atol=1e-15)
    scores = pruned.replacement_score, pruned.completeness
    assert scores == pytest.approx(found["scores"].tolist(), rel=1e-5)
    # What is kept, too; theirs counts logits among nodes and their links' sources.
    assert np.array_equal(pruned.source_X.numpy(), found["nodes"][:X])
    rows = np.r_[:num_latents, X : X + T]
    assert np.array_equal(pruned.link.numpy(), found["links"][rows][:, :X])
    assert 50 < pruned.source_X.sum() < 0.9 * X
