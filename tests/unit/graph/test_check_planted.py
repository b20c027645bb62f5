"""The graph of a circuit that is known, and its check: paths as planted, and what cutting them leaves."""

import numpy as np
import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.graph.check.check import check
from sae_dist.graph.check.chosen import firing
from sae_dist.graph.check.paths import new_code
from sae_dist.graph.check.predicted import Predicted
from sae_dist.graph.check.seen import Change
from sae_dist.graph.check.trials import Trials
from sae_dist.graph.sites import sites_of
from sae_dist.graph.trace import trace
from tests.helpers.graphs import prompt, small_model, transcoders
from tests.helpers.planted_circuit import LAST, PARIS, PLANTED, PROMPT, known_paths, planted_circuit, said

NEAR = 0.02
"""How far norms are from 1."""
TARGETS = ["Paris", "Rome"]


@pytest.fixture(scope="module")
def circuit():
    d, lm = planted_circuit()
    return d, lm, trace(d, lm, PROMPT, targets=TARGETS, node_threshold=1.0, edge_threshold=1.0)


@pytest.fixture(scope="module")
def verdict(circuit):
    d, lm, graph = circuit
    return check(graph, d, lm)


def test_the_model_says_paris(circuit):
    _, lm, _ = circuit
    logits = lm(input_ids=lm.ids(PROMPT)[None]).logits[0, -1]
    assert lm.pieces([int(logits.argmax())]) == ["Paris"]


def test_the_graph_finds_the_planted_paths(circuit):
    graph = circuit[2]
    predicted = Predicted(graph)
    found = {
        tuple(graph.nodes[n].id for n in path.nodes): path.effect
        for path in predicted.paths(predicted.logits[0], 10)
    }
    known = known_paths()
    strongest = sorted(found, key=lambda path: -abs(found[path]))[: len(known)]
    assert set(strongest) == set(known)
    for path, carried in known.items():
        assert found[path] == pytest.approx(carried, rel=NEAR)


def test_latents_that_nobody_reads_are_left_out(circuit):
    d, lm, graph = circuit
    pruned = trace(d, lm, PROMPT, targets=TARGETS)
    unread = [node.id for node in pruned.nodes if node.kind == "latent" and node.latent >= 10]
    assert unread == []
    assert any(node.kind == "latent" and node.latent >= 10 for node in graph.nodes) or graph.latents[0] > 10


def test_the_check_says_that_it_explains(verdict):
    assert verdict.level == "explains", str(verdict)
    numbers = verdict.numbers
    assert numbers["cut"]["slope"] == pytest.approx(1, abs=0.1)
    assert numbers["cut"]["rank"] > 0.9 and numbers["edges"]["rank"] > 0.9
    assert numbers["by_paths"]["slope"] == pytest.approx(1, abs=0.1)
    assert numbers["told"]["share"] == pytest.approx(1, abs=1e-4)


def test_cutting_the_path_kills_the_answer(circuit):
    d, lm, graph = circuit
    logit = lm.tokenizer.convert_tokens_to_ids("Paris")
    trials = Trials(sites_of(d, lm), lm, torch.tensor(graph.ids), [logit])
    codes = trials.at(0)[1]
    cuts = [Change(0, 0, -float(codes.of_latent(latent)[0]) * d[0].W_dec[latent]) for latent in (0, 4)]
    moved = float(trials.run([cuts]).logit_CT[0, 0])
    # Without the path the latents of layer 1 that read it are silent, and what they said is gone.
    codes = trials.at(1)[1]
    said_by = {each.latent: said(each.writes) for each in PLANTED if each.layer == 1}
    lost = sum(float(codes.of_latent(latent)[LAST]) * said_by[latent] for latent in (0, 2))
    assert lost > 4 and moved == pytest.approx(-lost, rel=NEAR)


def test_changes_are_those_of_a_hook_of_ones_own(circuit):
    d, lm, graph = circuit
    trials = Trials(sites_of(d, lm), lm, torch.tensor(graph.ids), [6, 7], watched=[(1, LAST, 0)], batch=3)
    draw = torch.Generator().manual_seed(0)
    deltas = torch.randn(7, d[0].W_dec.shape[1], generator=draw)
    found = trials.run([[Change(0, n % 5, delta)] for n, delta in enumerate(deltas)])
    for n, delta in enumerate(deltas):

        def act(_module, _args, out, n=n, delta=delta):
            out[0, n % 5] += delta
            return out

        seen = []
        handles = [
            lm.base.h[0].mlp.register_forward_hook(act),
            lm.base.h[1].mlp.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0])),
        ]
        logits = lm(input_ids=lm.ids(PROMPT)[None]).logits[0, -1].double()
        for each in handles:
            each.remove()
        clean = trials.clean.logit_NV[0].double()
        assert torch.allclose(found.logit_CT[n], (logits - logits.mean() - clean)[[6, 7]], atol=1e-5)
        moved = (seen[0][0, LAST] - trials.input(1)[LAST]) @ d[1].W_enc[:, 0]
        assert float(found.pre_CM[n, 0]) == pytest.approx(float(moved), abs=1e-4)


def test_pinned_changes_reach_no_further_than_an_edge(circuit):
    d, lm, graph = circuit
    predicted = Predicted(graph)
    source = predicted.place["f_0_0_0"]
    trials = Trials(sites_of(d, lm), lm, torch.tensor(graph.ids), [6], watched=[(1, LAST, 0)])
    delta = -float(predicted.value_T[source]) * d[0].W_dec[0]
    free, held = (trials.run([[Change(0, 0, delta)]], pinned=pinned) for pinned in (False, True))
    assert float(free.logit_CT[0, 0]) < -1.5 and abs(float(held.logit_CT[0, 0])) < 0.05
    edge = predicted.direct(predicted.scaled([source], 0.0))[0, predicted.place["f_1_4_0"]]
    assert float(held.pre_CM[0, 0]) == pytest.approx(edge, rel=NEAR)


def test_effects_along_all_paths_are_the_graphs_own(circuit):
    graph = circuit[2]
    predicted = Predicted(graph)
    effect = predicted.changes(predicted.scaled(predicted.latents, 0.0))[:, predicted.logits]
    own = -graph.effect([graph.nodes[n].id for n in predicted.latents])
    assert np.allclose(effect, own.double().numpy(), atol=1e-4)


def test_transcoders_that_lack_the_path_are_found_out():
    d, lm = planted_circuit(without=((1, 0), (1, 2), (0, 0), (0, 4)))
    graph = trace(d, lm, PROMPT, targets=TARGETS)
    found = check(graph, d, lm)
    assert found.level == "little", str(found)


def test_a_graph_of_another_prompt_is_refused(circuit):
    d, lm, graph = circuit
    from dataclasses import replace

    other = replace(graph, ids=graph.ids[::-1])
    with pytest.raises(ConfigError, match="in the graph and"):
        check(other, d, lm)


def test_paris_is_the_metric(verdict, circuit):
    assert verdict.numbers["metric"] == "the logit of 'Paris' minus the mean logit"
    assert any(node.id == PARIS for node in circuit[2].nodes)
    d, lm, graph = circuit
    against = check(graph, d, lm, nodes=6, paths=0, against=True)
    assert against.numbers["metric"] == "the logit of 'Paris' minus that of 'Rome'"


@pytest.mark.parametrize(
    ("kind", "latents", "form", "dtype"),
    [
        ("llama", "jumprelu", "skip", torch.float64),
        ("gpt2", "topk", "transcoder", torch.float64),
        ("gemma2", "gated", "skip", torch.float64),
        ("mixtral", "relu", "transcoder", torch.float32),  # its experts know no float64
        ("gpt_neox", "topk", "skip", torch.float64),
    ],
)
def test_edges_are_exact_where_patterns_and_norms_are_held(kind, latents, form, dtype):
    """Random models, in which attention and norms do much: where they may, an edge is not all."""
    lm = small_model(kind, dtype)
    d = transcoders(lm, kind, latents, form)
    graph = trace(d, lm, prompt(5), node_threshold=1.0, edge_threshold=1.0)
    predicted = Predicted(graph)
    own = predicted.latents
    keys = [(graph.nodes[n].layer, graph.nodes[n].position, graph.nodes[n].latent) for n in own]
    trials = Trials(sites_of(d, lm), lm, torch.tensor(graph.ids), [n.token for n in graph.logits], keys)
    cuts = [[each.scaled(0.0)] for each in firing(trials, keys)]
    told = predicted.direct(predicted.scaled(own, 0.0))[:, own + predicted.logits]
    held, free = (trials.run(cuts, pinned=True, held=held) for held in (True, False))
    held, free = (np.concatenate([each.pre_CM, each.logit_CT], 1) for each in (held, free))
    size = np.abs(told).max()
    assert np.abs(held - told).max() < (1e-6 if dtype == torch.float64 else 1e-4) * size
    assert np.abs(free - told).max() > 0.01 * size


@pytest.mark.parametrize("latents", ["topk", "relu", "jumprelu", "gated"])
def test_a_code_on_a_path_moves_with_its_pre_activation(latents):
    lm = small_model("llama")
    trials = Trials(sites_of(transcoders(lm, "llama", latents), lm), lm, torch.tensor(prompt(5)), [7])
    codes = trials.at(1)[1]
    own = int(codes.values.argmax())
    found = firing(trials, [(1, int(codes.rows[own]), int(codes.latents[own]))])[0]
    for move in (0.01 * found.code, -2 * found.code):
        assert new_code(trials, found, move) == pytest.approx(max(found.code + move, 0.0), abs=1e-9)
