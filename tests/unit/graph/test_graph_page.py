"""The page of a graph as a text: nothing foreign in it, words that stay words, and what a notebook shows."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sae_dist.graph.check.verdict import Table, Verdict
from sae_dist.graph.known import Excerpt, Known
from sae_dist.graph.page import data
from sae_dist.graph.page.notebook import fragment
from sae_dist.graph.page.page import page, write_page
from tests.helpers.browser import Tags
from tests.helpers.made_graphs import HOSTILE, VERDICT, graph_of


class Read(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts = [], set(), "", 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def hostile():
    graph = graph_of(tokens=HOSTILE, targets=HOSTILE[:3], model=HOSTILE[0], set_name=HOSTILE[2])
    words = Known(
        label=HOSTILE[0],
        state="confirmed",
        rate=0.01,
        most=3.0,
        fires=HOSTILE,
        up=tuple((each, 1.0) for each in HOSTILE),
        excerpts=(Excerpt(HOSTILE, (0.0, 1.0, 3.0, 0.0, 0.0), 2),),
    )
    known = {(each.layer, each.latent): words for each in graph.nodes if each.kind == "latent"}
    return graph, known


def held(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_hostile_words_stay_words():
    graph, known = hostile()
    text = page(graph, VERDICT, known)
    read = Read(text)
    assert read.tags.count("script") == 2 and read.tags.count("style") == 1 and "img" not in read.tags
    assert not {name for name in read.attributes if name.startswith("on") or name == "style"}
    assert "alert(1)</script>" not in text and "\u202e" not in text and "\x1b" not in text
    assert HOSTILE[0] in read.text and "{{ 7 * 7 }}" in read.text
    assert held(text)["tokens"][0] == HOSTILE[0] and "\\u202e" in held(text)["tokens"][1]


def test_nothing_is_fetched_and_only_its_own_script_runs():
    text = page(graph_of(), VERDICT)
    tags = Tags(text)
    assert [each for each in tags.addresses if not each.startswith("#")] == []
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    (said,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    said = said.replace("&#39;", "'")
    assert "default-src 'none'" in said and "unsafe" not in said
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in said


def test_the_page_holds_the_graph():
    graph = graph_of()
    found = held(page(graph))
    assert found["nodes"]["id"] == [node.id for node in graph.nodes]
    start, source = (
        np.frombuffer(base64.b64decode(found["edges"][key]), "<i4") for key in ("start", "source")
    )
    weight = np.frombuffer(base64.b64decode(found["edges"]["weight"]), "<f4")
    target = np.repeat(np.arange(len(graph.nodes)), np.diff(start))
    dense = graph.matrix().numpy()
    assert len(weight) == len(graph.weights) and (dense[target, source] == weight).all()
    assert np.allclose(np.array(found["nodes"]["total"]), graph.total.numpy(), rtol=1e-5)


def test_of_too_many_links_those_stay_that_carry_most(monkeypatch):
    graph = graph_of()
    monkeypatch.setattr(data, "MOST_EDGES", 50)
    found, left_out = data.page_data(graph, {})
    assert left_out == len(graph.weights) - 50
    weight = np.frombuffer(base64.b64decode(found["edges"]["weight"]), "<f4")
    size, influence = graph.weights.abs().double(), [node.influence for node in graph.nodes]
    total = graph.matrix().abs().double().sum(1)
    carried = [s * influence[row] / total[row] for s, row in zip(size, graph.rows, strict=True)]
    best = sorted(range(len(carried)), key=lambda n: -carried[n])[:50]
    assert sorted(weight.tolist()) == sorted(graph.weights[best].tolist())
    assert f"{left_out:,} weaker links are left out" in page(graph)


def test_the_verdict_comes_first_and_its_nodes_are_links():
    graph = graph_of()
    text = page(graph, VERDICT)
    assert text.index(VERDICT.lines[0]) < text.index("<canvas")
    assert 'data-node="t_0"' in text and text.count("data-node=") == 1
    assert "&lt;b&gt;in logits" in text and 'class="verdict partly"' in text
    assert "Not checked" not in text and "Not checked" in page(graph)


@pytest.mark.parametrize(
    "how", [{"positions": 1, "latents": 1, "layers": 1, "logits": 1}, {"latents": 0}, {"each": 0}]
)
def test_small_graphs_have_pages(tmp_path, how):
    graph = graph_of(**how)
    path = write_page(tmp_path / "graph.html", graph)
    assert len(held(path.read_text())["nodes"]["id"]) == len(graph.nodes)
    assert fragment(graph)


def test_nodes_within_a_cell_are_links_where_the_graph_has_them():
    graph = graph_of()
    latent = next(node.id for node in graph.nodes if node.kind == "latent")
    table = Table("Paths", ("path",), ((f"{latent} > f_99_0_0 > l_900",), (f"x{latent}, (t_0)",)))
    text = page(graph, Verdict(level="little", lines=("No.",), tables=(table,)))
    assert re.findall(r'data-node="([^"]*)"', text) == [latent, "l_900", "t_0"]
    assert "> f_99_0_0 >".replace(">", "&gt;") in text


def test_of_a_long_verdict_the_beginning_stands_open():
    lines = tuple(f"Line {n}." for n in range(9))
    text = page(graph_of(), Verdict(level="partly", lines=lines))
    places = [text.index(f">{each}<") for each in lines]
    assert places == sorted(places) and places[2] < text.index("<details>") < places[3]


def test_no_path_of_a_machine_is_shown():
    graph = graph_of(model="/home/me/models/mine", set_name="../outputs/the set")
    for text in (page(graph), fragment(graph)):
        assert "/home" not in text and "../outputs" not in text
        assert "mine, the set" in text
    assert "org/model" in page(graph_of(model="org/model"))


def test_a_notebook_shows_no_script():
    graph, _ = hostile()
    read = Read(fragment(graph, VERDICT))
    assert set(read.tags) <= {"div", "style", "p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert read.attributes <= {"class"}
    assert VERDICT.lines[0] in read.text and read.text.count("f_") == 15
    best = max((node for node in graph.nodes if node.kind == "latent"), key=lambda node: node.influence)
    assert best.id in read.text
    assert fragment(graph) == graph._repr_html_()
