"""A graph as Neuronpedia's JSON: valid by its schema, ids that are one node's, and what its pages read."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.graph.formats.neuronpedia import neuronpedia, write_neuronpedia
from sae_dist.graph.graph import Layer, Node
from sae_dist.graph.known import Known
from sae_dist.graph.trace import trace
from tests.helpers.graphs import prompt, small_model, transcoders
from tests.helpers.made_graphs import HOSTILE, graph_of

SCHEMA = json.loads((Path(__file__).parents[2] / "helpers" / "neuronpedia_graph.json").read_text())
"""Types and required keys of Neuronpedia's graph-schema.json; integration/test_handed_on.py compares them."""


def valid(content: dict) -> dict:
    jsonschema.validate(content, SCHEMA)
    return content


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"tokens": HOSTILE, "targets": HOSTILE[:3]},
        {"positions": 1, "latents": 1, "layers": 1, "logits": 1},
        {"latents": 0},
        {"settings": {}},
        {"hooks": ["layers.3.mlp", "layers.7.mlp", "layers.11.mlp"]},
    ],
)
def test_what_is_written_is_valid(tmp_path, how):
    graph = graph_of(**how)
    path = write_neuronpedia(tmp_path / "graph.json", graph)
    found = valid(json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word)))
    assert len(found["nodes"]) == len(graph.nodes) and len(found["links"]) == len(graph.weights)
    assert list(tmp_path.iterdir()) == [path]


def test_the_schema_is_strict_enough_to_fail():
    found = neuronpedia(graph_of())
    del found["nodes"][0]["clerp"]
    with pytest.raises(jsonschema.ValidationError):
        valid(found)


def test_ids_are_of_one_node_each():
    """Latent 3 of layer 0 at position 5, the error of layer 3 there, and the same numbers in other orders."""
    latents = [(0, 5, 3), (3, 5, 0), (5, 3, 0), (0, 3, 5), (1, 2, 34), (1, 23, 4), (12, 3, 4)]
    nodes = [Node(f"f_{x}_{p}_{n}", "latent", x, p, latent=n, activation=1.0) for x, p, n in latents]
    nodes += [Node(f"e_{x}_{p}", "error", x, p) for x in range(13) for p in range(24)]
    nodes += [Node(f"t_{p}", "token", -1, p, token=p) for p in range(24)]
    nodes += [Node("l_5", "logit", 13, 23, token=5, influence=1.0, probability=1.0)]
    graph = graph_of(
        positions=24,
        layers=13,
        logits=1,
        nodes=tuple(nodes),
        rows=torch.tensor([0]),
        columns=torch.tensor([9]),
        weights=torch.ones(1),
    )
    found = neuronpedia(graph)["nodes"]
    for key in ("node_id", "jsNodeId"):
        assert len({each[key] for each in found}) == len(nodes)
    # What Neuronpedia makes of a node: layer, feature and position, and for errors a mark of their own.
    names = [(each["layer"], each["feature"], each["ctx_idx"], each["feature_type"]) for each in found]
    assert len(set(names)) == len(nodes)


def test_features_are_numbered_as_the_readers_undo_it():
    graph = graph_of(hooks=["layers.3.mlp", "layers.7.mlp", "layers.11.mlp"])
    for node, row in zip(graph.nodes, neuronpedia(graph)["nodes"], strict=True):
        if node.kind != "latent":
            continue
        pair = row["feature"]
        diagonal = int(((8 * pair + 1) ** 0.5 - 1) / 2)
        latent = pair - diagonal * (diagonal + 1) // 2
        assert (diagonal - latent, latent) == ((3, 7, 11)[node.layer], node.latent)
        assert row["layer"] == str((3, 7, 11)[node.layer])


def test_links_carry_the_weights():
    graph = graph_of()
    found = neuronpedia(graph)
    dense = graph.matrix()
    assert len({(each["source"], each["target"]) for each in found["links"]}) == len(found["links"])
    for each in found["links"]:
        assert each["weight"] == dense[graph.index[each["target"]], graph.index[each["source"]]]


def test_influence_is_the_share_down_to_a_node():
    graph = graph_of()
    rows = [each for each in neuronpedia(graph)["nodes"] if each["feature_type"] != "logit"]
    own = [node.influence for node in graph.nodes if node.kind != "logit"]
    order = sorted(range(len(own)), key=lambda n: -own[n])
    reached = [rows[n]["influence"] for n in order]
    assert reached == sorted(reached)
    assert reached[0] == pytest.approx(own[order[0]] / graph.influence_sum)
    assert reached[-1] == pytest.approx(0.8), "what pruning left"
    assert all(each["influence"] is None for each in neuronpedia(graph)["nodes"][-3:])


def test_pages_find_the_probability_of_a_logit():
    graph = graph_of(targets=HOSTILE[:3])
    rows = [each for each in neuronpedia(graph)["nodes"] if each["feature_type"] == "logit"]
    for node, row in zip(graph.logits, rows, strict=True):
        assert float(row["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(node.probability, abs=5e-4)
        assert row["token_prob"] == node.probability and row["is_target_logit"]


def test_words_are_an_atlas_s_where_there_is_one():
    graph = graph_of()
    first, second, third = [node for node in graph.nodes if node.kind == "latent"][:3]
    known = {
        (first.layer, first.latent): Known(label="capitals\u202e of countries"),
        (second.layer, second.latent): Known(fires=(" is",), up=((" Paris", 1.0),)),
    }
    words = {each["node_id"]: each["clerp"] for each in neuronpedia(graph, known)["nodes"]}
    assert words[first.id] == "capitals\\u202e of countries"
    assert words[second.id] == "on ' is'; raises ' Paris'"
    assert words[third.id] == f"L{third.layer} #{third.latent}"


def test_names_are_what_neuronpedia_takes():
    graph = graph_of(model="org/a model", set_name="../../ä/b c")
    about = neuronpedia(graph, description=["It explains it."])["metadata"]
    plain = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert set(about["slug"]) <= plain and set(about["scan"]) <= plain and about["scan"] == "a-model"
    assert (
        about["slug"].startswith("word0-word1")
        and about["slug"] != neuronpedia(graph_of())["metadata"]["slug"]
    )
    assert about["info"]["description"] == "It explains it." and about["schema_version"] == 1
    assert about["pruning_settings"] == {"node_threshold": 0.8, "edge_threshold": 0.98}
    assert "feature_details" not in about
    folders = (
        Layer("layers.0.mlp", "x", "/home/me/runs/first/export"),
        Layer("layers.1.mlp", "y", "/a/second"),
    )
    named = neuronpedia(replace(graph_of(layers=2), layers=folders))["metadata"]
    assert named["transcoder_list"] == ["first", "second"] and "/home" not in json.dumps(named)
    assert "transcoder" not in about["info"]["description"]
    bare = replace(graph_of(layers=2), layers=(Layer("layers.3.mlp"), Layer("layers.4.mlp", "y")))
    assert neuronpedia(bare, description=["Little."])["metadata"]["info"]["description"] == (
        "Little.\nno transcoder for layer 3"
    )
    assert (
        "no transcoder for layer 3" in bare.to_html() and "no transcoder for layer 3" not in graph.to_html()
    )
    again = neuronpedia(graph, slug="mine", scan="gpt2", source_set="set-16k")["metadata"]
    assert (again["slug"], again["scan"]) == ("mine", "gpt2")
    assert again["feature_details"] == {"neuronpedia_source_set": "set-16k"}


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    one, two = (write_neuronpedia(tmp_path / name, graph_of()) for name in ("a.json", "b.json"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path, value):
    graph = graph_of()
    graph = replace(graph, weights=graph.weights.clone().index_fill(0, torch.tensor([3]), value))
    with pytest.raises(ConfigError, match="not finite"):
        write_neuronpedia(tmp_path / "graph.json", graph)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def traced():
    """Graphs of a small model: with all nodes, and pruned."""
    lm = small_model("llama", torch.float64)
    own = transcoders(lm, "llama")
    return [
        trace(own, lm, prompt(), targets=[7, 11], node_threshold=share, edge_threshold=1.0)
        for share in (1.0, 0.8)
    ]


def test_a_threshold_in_the_json_is_that_of_pruning(traced):
    """A reader's slider at .8 leaves of the whole graph what pruning at .8 kept, and no other node."""
    whole, pruned = traced
    rows = [each for each in neuronpedia(whole)["nodes"] if each["influence"] is not None]
    rows.sort(key=lambda each: each["influence"])
    assert rows[-1]["influence"] == pytest.approx(1.0)
    left = {
        each["node_id"]
        for before, each in zip([{"influence": 0.0}, *rows], rows, strict=False)
        if before["influence"] < 0.8
    }
    kept = {node.id for node in pruned.nodes if node.kind in ("latent", "error")}
    assert kept == {each for each in left if each[0] in "fe"} and 0 < len(kept) < len(rows) / 2


def test_a_traced_graph_is_written(traced, tmp_path):
    for graph in traced:
        path = write_neuronpedia(tmp_path / "graph.json", graph)
        found = valid(json.loads(path.read_text()))
        assert len({each["node_id"] for each in found["nodes"]}) == len(graph.nodes)
        sums = {}
        for each in found["links"]:
            sums[each["target"]] = sums.get(each["target"], 0.0) + each["weight"]
        if graph is traced[0]:
            for node in graph.logits:
                number = graph.index[node.id]
                expected = float(graph.values[number] - graph.constants[number])
                assert sums[node.id] == pytest.approx(expected, rel=1e-4)
