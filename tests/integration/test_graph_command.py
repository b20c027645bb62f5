"""`sae-dist graph` as it is called, on a circuit that is known: files, verdict, errors, ranks."""

import hashlib
import json

import pytest

from sae_dist.graph.graph import Graph
from tests.helpers.planted_circuit import PROMPT, saved
from tests.helpers.warm import warm

FILES = {"graph.html", "neuronpedia.json", "graph.json", "graph.safetensors", "check.json"}
WHOLE = ["--node-threshold", "1", "--edge-threshold", "1"]
TARGETS = ["--target", "Paris", "--against", "Rome", *WHOLE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("circuit")
    saved(found)
    return found


def graph(folder, *more, ranks=1, prompt=PROMPT):
    return warm(folder, "graph", "set", prompt, *TARGETS, *more, ranks=ranks)


def test_a_graph_is_written_with_its_verdict(folder):
    done = graph(folder, "--out", "one")
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("The model does what this graph says.") and last == "one/graph.html"
    assert {each.name for each in (folder / "one").iterdir()} == FILES
    said = json.loads((folder / "one" / "check.json").read_text())
    page = (folder / "one" / "graph.html").read_text()
    assert said["level"] == "explains" and said["lines"][0] == first and "does what this graph says" in page
    found = Graph.load(folder / "one")
    assert found.effect(["f_0_0_0"])[0, 0] > 3
    again = graph(folder, "--out", "one")
    assert again.returncode == 2 and "one has a graph already; give --force" in again.stderr


def test_a_graph_that_is_not_checked_has_no_verdict_of_an_earlier_one(folder):
    (folder / "three").mkdir()
    (folder / "three" / "check.json").write_text("{}")
    (folder / "three" / "graph.json").write_text("{}")  # of a command that was interrupted while it checked
    done = graph(folder, "--no-check", "--out", "three")
    assert done.returncode == 0, done.stderr
    assert {each.name for each in (folder / "three").iterdir()} == FILES - {"check.json"}


def test_json_and_no_check(folder):
    done = graph(folder, "--no-check", "--json", "--out", "two")
    found = json.loads(done.stdout)
    assert found["verdict"] is None and [each["text"] for each in found["logits"]] == ["Paris", "Rome"]
    assert "check.json" not in {each.name for each in (folder / "two").iterdir()}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--against", "Paris Rome"), "'Paris Rome' is 2 tokens: 'Paris' (6), 'Rome' (7)"),
        (("--against", "id:99"), "token 99 does not exist"),
        (("--paraphrases", "nowhere.txt"), "--paraphrases nowhere.txt cannot be read"),
        (("--other", "nowhere"), "nowhere"),
        (("--other", "set/layer_0"), "--other set/layer_0 has no transcoder from h.1.mlp:in"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_what_is_wrong_is_a_line_and_leaves_nothing(folder, more, said):
    done = graph(folder, "--out", "wrong", *more)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (folder / "wrong").exists()


def test_a_prompt_of_one_token(folder):
    done = graph(folder, "--out", "short", prompt="in")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("This graph explains little")


@pytest.mark.long
def test_any_number_of_ranks_writes_the_same(folder):
    sums = set()
    for ranks in (1, 2, 3):
        done = graph(folder, "--out", f"ranks-{ranks}", ranks=ranks)
        assert done.returncode == 0, done.stderr
        names = sorted(FILES - {"graph.html", "neuronpedia.json"})  # these have the time, and the folder
        whole = b"".join((folder / f"ranks-{ranks}" / name).read_bytes() for name in names)
        sums.add(hashlib.sha256(whole).hexdigest())
    assert len(sums) == 1


@pytest.mark.long
def test_ranks_say_what_is_wrong_once(folder):
    done = graph(folder, "--out", "wrong", "--against", "id:99", ranks=2)
    assert done.returncode == 2
    assert done.stderr.count("token 99 does not exist") == 1
