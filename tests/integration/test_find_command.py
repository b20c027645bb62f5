"""The atlas of a real run in Python and on the command line: found, shown, and refused in one line."""

import json
import shutil

import pytest
import torch

import sae_dist as sd
from sae_dist.commands.main import main
from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, save_config
from sae_dist.core.sums import checksum
from sae_dist.export.saelens import WEIGHTS, export_saelens
from tests.helpers.described import described
from tests.helpers.dictionaries import random_sae

F, TEXT = 300, "The capital of France is Paris."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of the embedded model with a random dictionary, and an atlas of random text."""
    cfg = RunConfig(device="cpu", kernels="torch", name="a-run")
    cfg.sae.kind, cfg.sae.num_latents, cfg.sae.k, cfg.optim.kind = "topk", F, 8, "adam"
    cfg.llm.name, cfg.llm.dtype, cfg.tokens.kind, cfg.activations.kind = "embedded", "float32", "text", "llm"
    cfg.hook = "layers.1:out"
    place = tmp_path_factory.mktemp("runs") / "a-run"
    sae = random_sae("topk", F=F, D=256, k=8)
    sae.metadata.update({"hook_name": "layers.1:out", "model_name": "embedded"})
    export_saelens(place / "export", sae)
    save_config(resolve(cfg, None, F), place / "config.yaml")
    described(place / "atlas", F, checksum(place / "export" / WEIGHTS)["sha256"], documents=120)
    return place


def printed(capsys, *arguments):
    assert main(["find", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main(["find", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_text_is_encoded_as_explain_does(run, capsys):
    d = sd.load(run)
    lm = sd.model(d)
    t = d.atlas(lm)
    found = t.find(TEXT, top=F)
    seen = d.explain(lm, TEXT).latents_seen
    assert sorted(found.latents) == sorted(seen["latent"])
    idf = -torch.log2((torch.tensor(t.counts) + 0.5) / (t.facts["kept"] + 1)).double()
    score = {n: s * float(idf[n]) for n, s in zip(seen["latent"], seen["sum"], strict=True)}
    assert [each.score for each in found] == pytest.approx([score[n] for n in found.latents], rel=1e-5)
    assert found.latents == sorted(found.latents, key=lambda n: -score[n])
    for where in (run, run / "export", run / "atlas"):
        out = json.loads(printed(capsys, where, TEXT, "--json", "--top=5"))
        assert [each["latent"] for each in out["latents"]] == found.latents[:5]
        assert out["how"].startswith("by encoding the text")
    assert d.atlas().find(TEXT, top=F).latents == found.latents


def test_every_way_on_the_command_line(run, capsys, tmp_path):
    import numpy as np

    t = sd.load(run).atlas()
    t.labels.set(7, "months and days")
    np.save(tmp_path / "a.npy", t.decoder[9].numpy())
    asked = {
        ("--token", "#"): {"token": "#"},
        ("--token", "id:2", "--quick"): {"token": 2, "exact": False},
        ("--regex", '"#+'): {"regex": '"#+'},
        ("--direction", "latent:9"): {"direction": 9},
        ("--direction", tmp_path / "a.npy"): {"direction": t.decoder[9]},
        ("--label", "month"): {"label": "month"},
        ("--together", "3,1", "--exact"): {"together": [3, 1], "exact": True},
    }
    for words, how in asked.items():
        found = t.find(**how, top=3)
        assert found.latents and json.loads(printed(capsys, run, *words, "--top", 3, "--json")) == found.json
        assert found.how in printed(capsys, run, *words)


def test_words_where_the_model_is_not_here(run, capsys, tmp_path):
    out = printed(capsys, run, "#", "--model", "nowhere")
    assert "in any case: " in out and "The text was not encoded: llm.name=nowhere is neither" in out
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    assert "The text was not encoded: " in printed(capsys, tmp_path / "run", "#")


def test_an_atlas_of_another_dictionary(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    sae = random_sae("relu", F=F, D=256)
    export_saelens(tmp_path / "run" / "export", sae)
    with pytest.raises(sd.ConfigError, match="was written after its atlas was made"):
        sd.load(tmp_path / "run").atlas()
    shutil.rmtree(tmp_path / "run" / "atlas")
    with pytest.raises(sd.ConfigError, match="has no atlas; make one: sae-dist atlas "):
        sd.load(tmp_path / "run").atlas()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "needs a run and one thing to look for"),
        (("RUN",), "and got 0"),
        (("RUN", "a", "b"), "and got 2"),
        (("RUN", "a", "--token", "b"), "and got 2"),
        (("RUN", "--token"), "a value must follow --token"),
        (("RUN", "--tokn", "a"), "has no option --tokn"),
        (("RUN", "--token", "id:x"), "x: a number, such as 123, must follow --token"),
        (("RUN", "--together", "1,x"), "x: a number, such as 123, must follow --together"),
        (("RUN", "--token", "a", "--top", "0"), "--top"),
        (("RUN", "--token", "a", "--exact", "--quick"), "contradict"),
        (("RUN", "--direction", "nothing.npy"), "nothing.npy"),
        (("RUN", "--together", "300"), "latent 300 does not exist"),
        (("nowhere", "--token", "a"), "nowhere does not exist"),
    ],
)
def test_what_is_refused(run, capsys, words, says):
    assert says in refused(capsys, *(str(run) if each == "RUN" else each for each in words))


def test_an_atlas_is_handed_on(run, capsys, tmp_path):
    for name in ("neuronpedia", "circuit_tracer", "delphi"):
        words = ["atlas", str(run), "--format", name, "--latents=3,77", "--out", str(tmp_path / name)]
        assert main(words) == 0 and str(tmp_path / name) in capsys.readouterr().out
        assert any((tmp_path / name).iterdir())
    assert len(list((tmp_path / "circuit_tracer" / "features").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("RUN", "--format"), "a value must follow --format"),
        (("RUN", "--format", "saelens"), "--format saelens is none of neuronpedia, circuit_tracer, delphi"),
        (("RUN", "--format", "delphi", "--latents", "1,x"), "--latents 1,x is no list of latents"),
        (("RUN", "--format", "delphi", "--latents", "300"), "latent 300 does not exist"),
        (("--format", "delphi"), "needs one run folder"),
        (("RUN", "atlas.tokens=1M", "--format", "delphi"), "an atlas is handed on as it is"),
    ],
)
def test_what_cannot_be_handed_on(run, capsys, words, says):
    assert main(["atlas", *(str(run) if each == "RUN" else each for each in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
