"""`sae-dist attribute` on the embedded model: what it prints and writes, and what it refuses."""

import json

import pytest

import sae_dist as sd
from sae_dist.cli import main
from tests.integration.test_steer_command import exported

TEXT = "import numpy as"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attribute")
    exported(folder / "dictionary")
    rows = [{"prompt": "import os", "target": "id:300"}, {"prompt": "def f(x):", "target": "id:301"}]
    wrong = {"prompt": "def f(x):", "target": " supercalifragilistic"}
    (folder / "wrong.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(wrong) + "\n")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def printed(capsys, *arguments) -> str:
    assert main(["attribute", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_prompt_is_attributed_as_in_python(place, capsys):
    page = place / "page.html"
    options = ["--target", "id:300", "--against", "id:301", "--exact", 5, "--seed", 1]
    out = json.loads(printed(capsys, place / "dictionary", TEXT, *options, "--json", "--html", page))
    d = sd.load(place / "dictionary")
    found = d.attribute(sd.model(d), TEXT, metric=sd.logit_diff(300, 301), exact=5, seed=1)
    assert out == json.loads(found.to_json()) and page.read_text() == found.to_html()
    assert out["shown"]["codes"] == 5 and out["certificate"]["complete"]
    lines = printed(capsys, place / "dictionary", TEXT, "--exact=3").splitlines()
    assert lines[0].startswith("logit of the model's own first choice ")


def test_many_prompts(place, capsys):
    given = [place / "dictionary", "--prompts", place / "prompts.jsonl", "--exact", 4]
    out = json.loads(printed(capsys, *given, "--json"))
    assert out["about"]["prompts"] == 2 and len(out["prompts"]) == 2
    assert [row["exact"] is not None for row in out["rows"]][:5] == [True] * 4 + [False]
    assert "removed for real" in printed(capsys, *given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a dictionary and one prompt"),
        (["dictionary"], "needs a dictionary and one prompt"),
        (["dictionary", "a", "b"], "needs a dictionary and one prompt"),
        (["dictionary", ""], "the prompt is empty"),
        (["dictionary", "a", "--against", " b"], "b needs --target"),
        (["dictionary", "a", "--exact", "-1"], "--exact -1"),
        (["dictionary", "a", "--top", "3"], "no option --top"),
        (["dictionary", "a", "--html", "no/where.html"], "give a file in a folder that exists"),
        (["dictionary", "a", "--format", "x"], "--format x is unknown"),
        (["dictionary", "--prompts", "none.txt"], "--prompts none.txt cannot be read"),
        (["dictionary", "--prompts", "prompts.jsonl", "--html", "a.html"], "--html a.html is of one prompt"),
        (["dictionary", "a", "--target", " supercalifragilistic"], "tokens:"),
        (["dictionary", "a", "--target", "id:999999"], "target=999999"),
        (["dictionary", "a", "--prompts", "prompts.jsonl"], "takes the place of the prompt 'a'"),
        (["dictionary", "--prompts", "wrong.jsonl"], "wrong.jsonl line 2: target"),
        (["nowhere", "a"], "nowhere"),
    ],
)
def test_wrong_input_is_refused_in_a_line(place, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    assert main(["attribute", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert sorted(place.iterdir()) == before
