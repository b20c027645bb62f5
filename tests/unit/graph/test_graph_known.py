"""What atlases say of a graph's latents: each dictionary's own, labels that stand, and texts of the first."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import sae_dist as sd
from sae_dist.core.errors import ConfigError
from sae_dist.graph.graph import Layer
from sae_dist.graph.known import Known, known_of, label_of
from sae_dist.graph.page.page import page
from tests.helpers.in_use import dictionary
from tests.helpers.made_graphs import graph_of
from tests.helpers.served import atlas_run
from tests.helpers.tiny_llms import WIDTH

F = 600


@pytest.fixture(scope="module")
def with_atlas(tmp_path_factory):
    return sd.load(atlas_run(tmp_path_factory.mktemp("runs") / "run", F, dictionary=""))


def by_layer(graph, layer):
    return sorted({node.latent for node in graph.nodes if node.kind == "latent" and node.layer == layer})


def test_each_layer_is_asked_for_its_own(with_atlas):
    """A layer without a transcoder has no dictionary: those that follow are not taken for its."""
    layers = (Layer("layers.0.mlp"), Layer("layers.1.mlp", "layers.1.mlp:in"), Layer("layers.2.mlp", "x:in"))
    graph = replace(graph_of(layers=3, latents=30), layers=layers)
    nodes = tuple(each for each in graph.nodes if each.kind != "latent" or each.layer > 0)
    graph = replace(graph, nodes=nodes)
    found = known_of(graph, [dictionary(), with_atlas])
    assert sorted(found) == [(2, latent) for latent in by_layer(graph, 2)]
    atlas = with_atlas.atlas()
    for (_, latent), known in found.items():
        about = atlas.latent(latent)
        assert known.rate == about.rate and known.most == about.most
        assert known.up == tuple((each.text, each.logit) for each in about.up)
        strongest = [each for each in atlas.examples(latent) if each.bin == -1][:3]
        assert [each.codes[each.own] for each in known.excerpts] == [each.code for each in strongest]


def test_labels_that_stand(with_atlas):
    graph = graph_of(layers=1, latents=20)
    first, second = by_layer(graph, 0)[:2]
    labels = with_atlas.atlas().labels
    labels.set(first, "a word", "confirmed")
    labels.set(second, "wrong", "rejected")
    found = known_of(graph, [with_atlas])
    assert (found[0, first].label, found[0, first].state) == ("a word", "confirmed")
    assert found[0, second].label == "" and "wrong" not in page(graph, None, found)
    assert page(graph, None, found) == graph.to_html(None, [with_atlas])
    words = [each["clerp"] for each in graph.to_neuronpedia([with_atlas], slug="mine")["nodes"]]
    assert "a word" in words and graph.to_html() == page(graph)


def test_texts_are_those_of_the_most_influential(with_atlas):
    graph = graph_of(layers=1, latents=30)
    found = known_of(graph, [with_atlas], contexts=1, most=4)
    sums = {}
    for node in graph.nodes:
        if node.kind == "latent":
            sums[node.latent] = sums.get(node.latent, 0) + node.influence
    best = sorted(sums, key=lambda latent: -sums[latent])[:4]
    with_texts = {latent for (_, latent), known in found.items() if known.excerpts}
    assert with_texts and with_texts <= set(best)
    assert all(len(known.excerpts) <= 1 for known in found.values())


def test_without_an_atlas_the_head_says_what_a_latent_raises():
    """Against the whole product; rows of the head that stand for no token are none."""
    own, head = dictionary(form="transcoder"), torch.nn.Linear(WIDTH, 50)
    lm = SimpleNamespace(
        model=SimpleNamespace(get_output_embeddings=lambda: head),
        tokenizer=range(40),
        pieces=lambda ids: [f"token {each}" for each in ids],
    )
    graph = graph_of(layers=1, latents=20)
    nodes = tuple(n for n in graph.nodes if n.kind != "latent" or n.latent < own.num_latents)
    graph = replace(graph, nodes=nodes)
    found = known_of(graph, [own], lm)
    assert sorted(found) == [(0, latent) for latent in by_layer(graph, 0)]
    for (_, latent), known in found.items():
        logit_V = (own.W_dec[latent].double() @ head.weight.detach().double().T)[:40]
        order = logit_V.argsort(descending=True).tolist()
        assert [token for token, _ in known.up] == [f"token {each}" for each in order[:5]]
        assert [token for token, _ in known.down] == [f"token {each}" for each in order[::-1][:5]]
        assert known.up[0][1] == pytest.approx(float(logit_V.max()), rel=1e-6)
    head = torch.nn.Linear(WIDTH - 1, 50)
    assert known_of(graph, [own], lm) == {} and known_of(graph, [own]) == {}


def test_an_atlas_of_another_dictionary_is_not_asked(tmp_path):
    run = atlas_run(tmp_path / "run", F)
    found = sd.load(run)
    found.place.folder = sd.load(atlas_run(tmp_path / "other", 100)).place.folder
    with pytest.raises(ConfigError, match="make the atlas again"):
        known_of(graph_of(layers=1), [found])


def test_words_of_a_latent():
    assert label_of(None) == "" and label_of(Known()) == ""
    assert label_of(Known(label="x", fires=("a",))) == "x"
    assert label_of(Known(fires=("\n", "b", "c", "d"), up=(("e", 1.0),))) == "on '\\n', 'b', 'c'; raises 'e'"
