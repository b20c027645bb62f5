"""The examples of docs/python.md run, one after the other, and name what exists."""

import os
import re
from pathlib import Path

import sae_dist as sd
from sae_dist.core.sums import checksum
from sae_dist.export.saelens import WEIGHTS
from tests.helpers.described import described
from tests.helpers.evaluated import evaluated_run

PAGE = Path(__file__).parents[3] / "docs" / "python.md"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    evaluated_run(tmp_path / "outputs" / "tiny", tokens=1024, hook="layers.1:out", latents=512, k=64)
    run = tmp_path / "outputs" / "tiny"
    ids = sd.model(sd.load(run)).tokenizer(Path(sd.load.__code__.co_filename).read_text())["input_ids"]
    weights = checksum(run / "export" / WEIGHTS)["sha256"]
    described(run / "atlas", 512, weights, documents=40, ids=ids)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names: dict = {}
    for number, each in enumerate(examples()):
        exec(compile(each, f"example {number} of {PAGE.name}", "exec"), names)
    printed = re.search(r"^print\(d\)  # (.*)$", PAGE.read_text(), flags=re.M)
    assert printed is not None and printed[1] in capsys.readouterr().out
    assert names["codes"].shape == (2, 5, 512) and names["y"].shape == (2, 5, 256)
    assert names["s"].intervened > 0 and names["effect"].abs().max() > 0
    assert names["w"].codes.shape[-1] == 3 and len(names["out"][0]) > 8
    assert len(names["found"]) == 20 and names["t"].labels.of([123])[123].text == "dates"
    assert os.listdir(tmp_path) == ["outputs"], "nothing else was written"


def test_the_page_names_every_public_name():
    text = PAGE.read_text()
    missing = [each for each in sd.__all__ if f"sd.{each}" not in text]
    assert missing == []


def test_the_page_names_what_a_dictionary_has():
    text = PAGE.read_text()
    public = [each for each in vars(sd.Dictionary) if not each.startswith("_")]
    assert [each for each in public if not re.search(rf"\b{each}\b", text)] == []
