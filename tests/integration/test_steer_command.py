"""`sae-dist steer` and `sae-dist ablate` on the embedded model: what they write, and what they refuse."""

import dataclasses
import html
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import sae_dist as sd
from sae_dist.cli import main
from sae_dist.export.saelens import export_saelens
from sae_dist.export.statistics import CodeSums
from tests.helpers.browser import Tags, is_light, measured, needs_browser, watched
from tests.helpers.browser import browse as browsed
from tests.helpers.dictionaries import random_sae
from tests.helpers.tiny_llms import save_tiny

LATENTS, WIDTH = 48, 256
PLANTED = "<script>document.title='taken'</script>"
BEGINNINGS = [
    "import os",
    "def f(x):",
    "class A:",
    "return self",
    "for i in",
    PLANTED,
    'print("',
    "a list of",
]


def exported(folder: Path, model: str = "embedded", hook: str = "layers.1:out", width: int = WIDTH) -> Path:
    """A random dictionary as another library might have left it."""
    sae = random_sae("topk", F=LATENTS, D=width, out=width, k=8)
    sae = dataclasses.replace(sae, metadata={"model_name": model, "hook_name": hook})
    export_saelens(folder, sae)
    return folder


def sums(d, lm, *texts: str) -> CodeSums:
    """The codes of all latents on texts."""
    found = CodeSums(d.num_latents, torch.device("cpu"))
    with torch.no_grad(), d.attach(lm) as attached:
        for text in texts:
            lm(input_ids=lm.ids(text)[None])
            assert attached.codes is not None
            found.add(attached.codes.plain())
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a dictionary whose codes were measured, and prompts."""
    folder = tmp_path_factory.mktemp("steer")
    d = sd.load(exported(folder / "dictionary"))
    statistics = sums(d, sd.model(d), *BEGINNINGS, "import sys\nfor each in range(3):\n    pass").statistics()
    statistics.save(folder / "dictionary")
    assert int((statistics.rate_F > 0).sum()) > 12
    (folder / "latent").write_text(str(int(statistics.rate_F.argmax())))
    lines = [json.dumps({"prompt": f"{each} {n}"}) for n in range(2) for each in BEGINNINGS]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def study(place, tmp_path_factory) -> Path:
    """The folder of a study of two latents."""
    latent = (place / "latent").read_text()
    arguments = [
        str(place / "dictionary"),
        "--clamp",
        f"{latent}=2x",
        "--project-out",
        latent,
        "--doses",
        "1",
    ]
    arguments += ["--prompts", str(place / "prompts.jsonl"), "--target", "self", "--against", "None"]
    out = tmp_path_factory.mktemp("out") / "study"
    assert main(["steer", *arguments, "--tokens", "4", "--controls", "2", "--out", str(out)]) == 0
    return out


def test_the_file_has_everything(study, place):
    found = json.loads((study / "steer.json").read_text())
    latent = int((place / "latent").read_text())
    assert found["model"] == "embedded" and found["hook"] == "layers.1:out" and found["seed"] == 0
    assert found["command"].startswith("sae-dist steer") and found["claims_are_of"] == "target"
    assert [(each["how"], each["dose"]) for each in found["hypotheses"]] == [
        ("clamp", 1.0),
        ("clamp", 2.0),
        ("project-out", None),
    ]
    for each in found["hypotheses"]:
        assert each["latent"] == latent and each["words"] and len(each["generated"]) == 16
        assert len(each["controls"]) == 4 and each["p_by_holm"] >= each["p"]
        assert each["interval"][0] <= each["mean"] <= each["interval"][1]
        assert set(each["effects"]) == {"target", "kl", "kl_end", "perplexity", "repetition"}
    assert len(found["conditions"]) == 3 * (2 + 3 * 2) and len(found["prompts"]) == 16
    assert all(len(each["effects"]["kl"]) == 16 for each in found["conditions"])
    assert found["prompts"][0]["target"] == "self" and found["prompts"][0]["against"] == "None"


def test_the_page_shows_the_same_and_nothing_else(study):
    text = (study / "steer.html").read_text()
    found = json.loads((study / "steer.json").read_text())
    tags = Tags(text)
    assert not tags.names & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    assert not any(name.startswith("on") for name in tags.attributes) and not tags.addresses
    shown = html.unescape(re.sub(r"\s+", " ", text))
    for each in found["hypotheses"]:
        assert each["words"] in shown
    for each in (*found["warnings"], found["command"]):
        assert re.sub(r"\s+", " ", each) in shown
    assert PLANTED in html.unescape(text) and PLANTED not in text
    assert found["prompts"][0]["generated"] in html.unescape(text)


def test_a_study_is_not_written_over(study, place, capsys):
    before = (study / "steer.json").read_bytes()
    latent = (place / "latent").read_text()
    arguments = ["steer", str(place / "dictionary"), "--ablate", latent, "--out", str(study)]
    assert main(arguments) == 2
    assert "has a study already; give --force" in capsys.readouterr().err
    assert (study / "steer.json").read_bytes() == before and len(list(study.parent.iterdir())) == 1


def test_default_prompts_are_always_the_same_held_out_beginnings(place):
    from sae_dist.interpret.study.prompts import default_prompts, held_out_texts

    d = sd.load(place / "dictionary")
    lm = sd.model(d)
    first, again = (default_prompts(d, lm, " =", None, 8) for _ in range(2))
    assert first == again and len({each.ids for each in first}) == len(first) == 64
    assert all(each.ids[: len(lm.prefix)] == lm.prefix and each.target for each in first)
    texts = held_out_texts(d, lm, 1000)
    assert 1000 <= sum(map(len, texts)) < 1300


def test_codes_that_were_never_measured_are_measured(place, tmp_path, monkeypatch):
    from sae_dist.interpret.study.study import with_statistics

    given = {}

    def measure(d, lm, **how):
        given.update(how)
        return sums(d, lm, "import os").statistics()

    stand_in = types.ModuleType("sae_dist.interpret.measure")
    stand_in.measure = measure
    monkeypatch.setitem(sys.modules, "sae_dist.interpret.measure", stand_in)
    d = sd.load(exported(tmp_path / "new"))
    assert d.place.statistics(LATENTS) is None
    again, statistics = with_statistics(d, sd.model(d))
    assert again.place.statistics(LATENTS) is statistics and len(given["texts"]) > 10
    assert with_statistics(again, None)[1] is statistics


def test_ablate_prints_a_table_or_json(place, capsys):
    arguments = ["ablate", str(place / "dictionary"), "--prompts", str(place / "prompts.jsonl")]
    arguments += ["--target", "self", "--top", "3", "--candidates", "6", "--controls", "2"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "logit of the target's first token minus the mean logit" in lines[0] and "16 prompts" in lines[0]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["candidates"] == 6 and len(found["rows"]) == 3
    assert [line.split()[0] for line in lines[4:7]] == [str(each["latent"]) for each in found["rows"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clamp", "48"], "latent 48 does not exist; the latents are 0 to 47"),
        (["--clamp", "3", "--target", ""], "has no tokens"),
        (["--clamp", "3", "--prompts", "{long}"], "long.txt line 2 has .* tokens and 32 follow"),
        (["--clamp", "3", "--prompts", "{bad}"], "bad.jsonl line 2 is not JSON"),
        (["--clamp", "3", "--target", "a", "--positions", "generated"], "changes nothing before the first"),
        (["--clamp", "3", "--model", "minilm_or_not"], "minilm_or_not"),
        (["--clamp", "3", "--controls", "64"], "other latents fire, 64 are drawn"),
        (["--clamp", "3", "--controls", "64", "--target", "\udcff"], "other latents fire, 64 are drawn"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(place, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    (files / "long.txt").write_text("a\n" + "word " * 3000)
    (files / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    names = {"{long}": str(files / "long.txt"), "{bad}": str(files / "bad.jsonl")}
    latent = (place / "latent").read_text()
    given = [latent if each == "3" else names.get(each, each) for each in arguments]
    assert main(["steer", str(place / "dictionary"), *given]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(words, said), said
    assert list(tmp_path.iterdir()) == [files]


def test_a_run_without_an_export_and_an_encoder_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["steer", "nowhere", "--ablate", "1"]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["ablate", "empty"]) == 2
    encoder = save_tiny("bert", tmp_path / "bert")
    exported(tmp_path / "dictionary", encoder, "encoder.layer.1:out", 32)
    capsys.readouterr()
    assert main(["steer", "dictionary", "--ablate", "1"]) == 2
    assert re.fullmatch(".*is an encoder and predicts no next token.*\n", capsys.readouterr().err)
    assert {each.name for each in tmp_path.iterdir()} == {"empty", "bert", "dictionary"}


@needs_browser
def test_the_page_in_a_browser(study, tmp_path):
    page = study / "steer.html"
    for seen in measured(page, tmp_path, (1280, 768, 360)):
        assert seen["scroll"] <= seen["width"] and not seen["wide"], seen
        assert seen["sections"][0] == "claims" and "measures" in seen["sections"]
        assert seen["title"].endswith("sae_dist steer") and seen["scripts"] == 1  # the one that looks
        assert len(seen["ids"]) == len(set(seen["ids"]))
    for width in (1280, 390):
        assert is_light(page, tmp_path, width) == (True, False)
    with watched() as (options, asked):
        browsed(*options, "--dump-dom", page.as_uri())
        assert asked == []
