"""A graph: links are rows, influence and totals those of dense algebra, files the same on any ranks."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.distributed.collectives import Axis
from sae_dist.graph.graph import Graph
from sae_dist.graph.trace import trace
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.place import Place
from tests.helpers.graphs import prompt, replacement, small_model, transcoders
from tests.helpers.ranks import run_ranks
from tests.unit.graph.test_replacement import all_rows


def drawn(dtype=torch.float64, kind="llama", lm=None, **how) -> Graph:
    lm = small_model(kind, dtype) if lm is None else lm
    return trace(transcoders(lm, kind), lm, prompt(), **{"targets": [7, 11], "batch": 32} | how)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Of all nodes and links through which anything comes."""
    return drawn(node_threshold=1.0, edge_threshold=1.0)


def dense(graph: Graph) -> torch.Tensor:
    return graph.matrix().double()


def test_its_links_are_the_rows_of_every_target(graph):
    model = replacement("llama")
    rows = all_rows(model).float()
    names = [
        f"f_{place}_{position}_{latent}"
        for place, active in enumerate(model.active)
        for position, latent in zip(active.position_P.tolist(), active.latent_P.tolist(), strict=True)
    ]
    columns = [*names, *(f"e_{place}_{at}" for place in range(4) for at in range(9))]
    columns += [f"t_{at}" for at in range(9)]
    expected = {
        (target, source): float(rows[number, place])
        for number, target in enumerate([*names, "l_7", "l_11"])
        for place, source in enumerate(columns)
    }
    ids = [node.id for node in graph.nodes]
    assert len(graph.weights) > 2000
    for target, source, weight in zip(graph.rows, graph.columns, graph.weights, strict=True):
        assert float(weight) == pytest.approx(expected[ids[target], ids[source]], rel=1e-5, abs=1e-9)


def test_influence_and_totals_are_those_of_dense_algebra(graph):
    A = dense(graph)
    M = len(A)
    logits = torch.tensor([graph.index["l_7"], graph.index["l_11"]])
    weight = torch.zeros(M, dtype=torch.float64)
    weight[logits] = torch.tensor([node.influence for node in graph.logits], dtype=torch.float64)
    share = A.abs() / A.abs().sum(1, keepdim=True).clamp(min=1e-300)
    expected = weight @ (torch.linalg.inv(torch.eye(M).double() - share) - torch.eye(M))
    found = torch.tensor([0.0 if n.kind == "logit" else n.influence for n in graph.nodes]).double()
    # Nodes through which nothing comes are left out, and nothing else.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    unit = graph.values.double().where(graph.values != 0, 1)
    paths = torch.linalg.inv(torch.eye(M).double() - A / unit[:, None]) - torch.eye(M)
    total = paths[logits].T * unit[logits]
    total[logits] = torch.diag(unit[logits])
    torch.testing.assert_close(graph.total.double(), total, rtol=1e-3, atol=1e-4)
    some = [node.id for node in graph.nodes[20:40]]
    torch.testing.assert_close(
        graph.effect(some), graph.effect_on(some, ["l_7", "l_11"]), rtol=1e-3, atol=1e-4
    )


def test_what_ends_in_tokens_errors_and_constants_is_the_logit(graph):
    model = replacement("llama")
    ends = [n for n in graph.nodes if n.kind in ("token", "error")]
    constant = model.run(torch.zeros(1, model.num_sources).double())
    # Latents pass their own constants on, too.
    passed = [graph.index[n.id] for n in graph.nodes if n.kind == "latent"]
    share = graph.constants.double()[passed] / graph.values.double()[passed]
    through = (graph.total.double()[passed] * share[:, None]).sum(0)
    found = graph.effect([n.id for n in ends]).double().sum(0) + through + constant.logits_NT[0]
    values = graph.values[-2:].double()
    torch.testing.assert_close(found, values, rtol=1e-3, atol=1e-3)


def test_checks_are_made_and_said(graph):
    checks = graph.checks
    assert max(checks.row_sums, checks.linear, checks.faithful) < 1e-9 < checks.tolerance
    assert checks.targets == graph.latents[0] + 2 or checks.targets == graph.latents[1] + 2
    assert checks.norms >= 9 and checks.patterns == 4 and checks.dtype == "float64"
    kinds = {
        kind: sum(n.influence for n in graph.nodes if n.kind == kind) for kind in ("latent", "error", "token")
    }
    assert graph.influence_sum == pytest.approx(sum(kinds.values()), rel=1e-6)
    # What comes into targets and is no error, and errors and tokens themselves; of all and the logits' 1.
    clean = kinds["latent"] + 1 - kinds["error"] + kinds["error"] + kinds["token"]
    assert graph.completeness == pytest.approx(clean / (graph.influence_sum + 1), rel=1e-5)
    assert 0 < graph.error_share < 1 and graph.unfollowed == pytest.approx(0, abs=1e-9)
    assert graph.replacement_score == pytest.approx(1 - graph.error_share, abs=1e-6)


def test_pruning_keeps_the_share_that_is_asked_for(graph):
    few = drawn(node_threshold=0.5, edge_threshold=0.7)
    ids = {node.id for node in few.nodes}
    assert ids < {node.id for node in graph.nodes} and len(few.weights) < len(graph.weights)
    all_scored = sorted((n for n in graph.nodes if n.kind != "logit"), key=lambda n: -n.influence)
    half, reached = set(), 0.0
    for node in all_scored:
        if reached < 0.5 * sum(n.influence for n in all_scored):
            half.add(node.id)
            reached += node.influence
    kept = {node.id for node in few.nodes if node.kind in ("latent", "error")}
    assert kept <= half and len(kept) > 5
    whole = dense(graph)
    for target, source, weight in zip(few.rows, few.columns, few.weights, strict=True):
        place = graph.index[few.nodes[target].id], graph.index[few.nodes[source].id]
        assert float(weight) == pytest.approx(float(whole[place]))
    fed, leads = set(few.rows.tolist()), set(few.columns.tolist())
    for number, node in enumerate(few.nodes):
        assert node.kind not in ("latent",) or number in fed
        assert node.kind not in ("latent", "error") or number in leads


def test_the_most_influential_are_followed():
    every, few = drawn(), drawn(max_nodes=40, batch=16)
    assert few.latents[1] == 40 < every.latents[1] and few.unfollowed > 0 == pytest.approx(every.unfollowed)
    followed = {n.id for n in few.nodes if n.kind == "latent"}
    best = sorted((n for n in every.nodes if n.kind == "latent"), key=lambda n: -n.influence)[:10]
    assert len({n.id for n in best} & followed) >= 8


def test_files_hold_the_graph(tmp_path, graph):
    graph.save(tmp_path)
    found = Graph.load(tmp_path)
    for name in ("rows", "columns", "weights", "constants", "total", "values"):
        assert torch.equal(getattr(found, name), getattr(graph, name))
    same = {
        name: getattr(graph, name) for name in ("rows", "columns", "weights", "constants", "total", "values")
    }
    assert repr(replace(found, **same)) == repr(graph) and found.nodes == graph.nodes
    assert found.checks == graph.checks and found.layers == graph.layers and found.settings == graph.settings


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format": 1', '"format": 2'),
        ('"position": 0', '"position": 99'),
        ('"latent": null', '"latent": 0.5'),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, graph, old, new):
    graph.save(tmp_path)
    text = (tmp_path / "graph.json").read_text()
    assert old in text
    (tmp_path / "graph.json").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match="draw the graph again"):
        Graph.load(tmp_path)


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def on_ranks(folder):
    axis = Axis("graph", torch.distributed.group.WORLD)
    drawn(torch.float32, folder=folder, max_nodes=60, batch=8, axis=axis)


@pytest.mark.long
def test_any_number_of_ranks_gives_the_same_bytes(tmp_path):
    for world in (1, 2, 3):
        run_ranks(on_ranks, world, tmp_path / str(world))
    expected = files(tmp_path / "1")
    assert len(expected) > 8
    assert files(tmp_path / "2") == expected == files(tmp_path / "3")


def test_ranks_need_a_folder():
    with pytest.raises(ConfigError, match="give a folder"):
        drawn(axis=SimpleNamespace(size=2, rank=0))


def test_a_trace_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    alone, kept = tmp_path / "alone", {}
    drawn(torch.float32, folder=alone, max_nodes=60, batch=8)
    expected = files(alone)
    for number, path in enumerate(sorted((alone / "rows").glob("rows-*"))):
        if number % 3 == 1:
            path.unlink()
        else:
            kept[path] = path.stat().st_mtime_ns
    drawn(torch.float32, folder=alone, max_nodes=60, batch=8)
    assert files(alone) == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with pytest.raises(ConfigError, match="another graph"):
        drawn(torch.float32, folder=alone, max_nodes=50, batch=8)


def test_what_no_transcoder_was_trained_on_has_no_latents():
    lm, ids = small_model("llama"), prompt()
    own = transcoders(lm, "llama")
    excluding = SimpleNamespace(exclude_ids=(ids[3],), max_norm_multiple=None)
    llm = SimpleNamespace(name=lm.name)
    run = SimpleNamespace(tokens=excluding, llm=llm, hook=own[0].hook, target_hook=own[0].target_hook)
    own[0] = Dictionary(own[0].sae, Place(Path("run"), run))
    found = trace(own, lm, ids, targets=[7], node_threshold=1.0, edge_threshold=1.0)
    at = {
        place: {n.position for n in found.nodes if n.kind == "latent" and n.layer == place}
        for place in (0, 1)
    }
    assert at[1] - at[0] == {3} and found.checks.row_sums < 1e-9


def test_outliers_have_no_latents():
    lm, ids = small_model("gpt2"), prompt()
    with torch.no_grad():
        lm.model.transformer.wte.weight[ids[4]] *= 1000
    own = transcoders(lm, "gpt2")
    # Behind a norm no activation is longer than others.
    said = {"hook_name": "h.0:in", "hook_name_out": "h.0.mlp:out"}
    own[0] = Dictionary(own[0].sae, Place(Path("layer0"), said=said))
    found = trace(own, lm, ids, targets=[7], node_threshold=1.0, edge_threshold=1.0)
    assert 4 not in {n.position for n in found.nodes if n.kind == "latent" and n.layer == 0}
    assert found.checks.row_sums < 1e-9


def test_a_prompt_of_one_token():
    lm = small_model("llama")
    found = trace(transcoders(lm, "llama"), lm, prompt(1), targets=[7], node_threshold=1.0)
    assert found.latents[0] == 20 and {n.position for n in found.nodes} == {0}


def test_layers_without_a_transcoder_are_errors_as_a_whole():
    lm = small_model("llama")
    found = trace([transcoders(lm, "llama")[2]], lm, prompt(), targets=[7], node_threshold=1.0)
    assert [layer.hook is None for layer in found.layers] == [True, True, False, True]
    assert {n.layer for n in found.nodes if n.kind == "error"} == {0, 1, 2, 3}
    assert {n.layer for n in found.nodes if n.kind == "latent"} == {2} and found.checks.row_sums < 1e-9


def test_special_tokens_have_no_latents():
    lm = replace(small_model("llama"), special_ids=frozenset({2}))
    for form in ("transcoder", "skip"):
        own = transcoders(lm, "llama", form=form)
        found = trace(own, lm, [2, *prompt(5)], targets=[7], node_threshold=1.0, edge_threshold=1.0)
        assert {n.position for n in found.nodes if n.kind == "latent"} == {1, 2, 3, 4, 5}
        assert "e_0_0" in found.index and found.checks.row_sums < 1e-9
    with pytest.raises(ConfigError, match="special tokens only"):
        trace(own, lm, [2], targets=[7])


def test_a_prompt_on_which_nothing_fires_is_all_error():
    lm = small_model("llama")
    own = [replace_sae(d, b_enc_F=d.b_enc - 1e3) for d in transcoders(lm, "llama", "relu")]
    found = trace(own, lm, prompt(), targets=[7])
    assert found.latents == (0, 0, 0) and found.replacement_score < 1 and found.checks.row_sums < 1e-9


def test_a_model_of_half_precision_is_computed_in_float32():
    lm = small_model("llama", torch.float32)
    half = replace(lm, model=small_model("llama", torch.bfloat16).model)
    found = trace(transcoders(lm, "llama"), half, prompt(), targets=[7])
    assert found.checks.dtype == "float32" and found.checks.row_sums < 1e-5
    assert half.dtype == torch.bfloat16


def test_without_targets_the_most_probable_tokens_are():
    found = drawn(targets=None)
    chosen = [node.probability for node in found.logits]
    assert chosen == sorted(chosen, reverse=True) and 1 <= len(chosen) <= 10
    assert len(chosen) == 10 or sum(chosen) >= 0.95 > sum(chosen[:-1])


def autoencoder(found):
    return [replace_sae(found[0], transcoder=False)]


def replace_sae(d, **new):
    return Dictionary(replace(d.sae, **new), d.place)


@pytest.mark.parametrize(
    ("change", "how", "words"),
    [
        (lambda found: [], {}, "is empty"),
        (lambda found: [found[0], found[0]], {}, "both reconstruct"),
        (autoencoder, {}, "needs transcoders"),
        (None, {"targets": []}, "give a list"),
        (None, {"targets": [7, 7]}, "names a token twice"),
        (None, {"targets": [4000]}, "does not exist"),
        (None, {"targets": [" Paris"]}, "no token id"),
        (None, {"max_nodes": 0}, "max_nodes=0"),
        (None, {"batch": True}, "batch=True"),
        (None, {"node_threshold": 0.0}, "node_threshold=0.0"),
        (None, {"edge_threshold": 1.5}, "edge_threshold=1.5"),
    ],
)
def test_bad_input_is_one_line(tmp_path, change, how, words):
    lm = small_model("llama")
    found = transcoders(lm, "llama")
    found = found if change is None else change(found)
    with pytest.raises(ConfigError, match=words) as error:
        trace(found, lm, prompt(), folder=tmp_path / "graph", **how)
    assert "\n" not in str(error.value) and not (tmp_path / "graph").exists()


def test_a_prompt_needs_tokens_and_a_model_rest():
    lm = small_model("llama")
    with pytest.raises(ConfigError, match="has no tokens"):
        trace(transcoders(lm, "llama"), lm, torch.zeros(0))
    lm.model.train()
    with pytest.raises(ConfigError, match="is in training"):
        trace(transcoders(lm, "llama"), lm, prompt())


class Guarded(Dictionary):
    """A transcoder whose matrices may not be read as a whole, and what is read of it."""

    read: tuple[int, ...] = ()

    @property
    def W_dec(self):
        raise AssertionError("all of the decoder")

    W_enc = W_dec

    def some(self, latents):
        self.read = (*self.read, *latents)
        return super().some(latents)


def test_only_rows_of_latents_that_fire_are_read():
    lm = small_model("llama")
    guarded = [Guarded(d.sae, d.place) for d in transcoders(lm, "llama")]
    found = trace(guarded, lm, prompt(), targets=[7], node_threshold=1.0)
    for place, d in enumerate(guarded):
        assert len(set(d.read)) == len(d.read) < d.num_latents
        assert {n.latent for n in found.nodes if n.kind == "latent" and n.layer == place} <= set(d.read)
