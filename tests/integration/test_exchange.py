"""`sae-dist export` and `sae-dist import`: to other libraries, back, and on with the training."""

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from sae_dist import cli
from sae_dist.core.owner import claim
from sae_dist.export.formats import FORMATS
from sae_dist.export.saelens import load_exported
from sae_dist.kernels.reference import encode_topk
from tests.helpers.commands import TINY, train
from tests.helpers.dictionaries import to_dense
from tests.helpers.warm import warm

SHORT = ["batch=192", "shuffle.chunk_rows=64", "train_tokens=768", "hook=layers.1"]
SHORT += ["activations.scaling=centred"]
KINDS = {
    "topk": ["topology.shard=2"],
    "matryoshka": ["sae=matryoshka", "topology.shard=2"],
    "relu": ["sae=relu", "sae.sparsity=0.01"],
    "skip": ["sae=topk", "hook=layers.1.mlp:in", "target_hook=layers.1.mlp", "sae.skip=true"],
}
HELD = {
    "topk": ("sparsify", "dictionary_learning"),
    "matryoshka": ("dictionary_learning",),
    "relu": ("dictionary_learning",),
    "skip": ("sparsify",),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Callable[[str], Path]:
    """A function that gives the run of a kind, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("exchange")

    @functools.cache
    def run_of(kind: str) -> Path:
        train(folder, kind, *SHORT, *KINDS[kind])
        return folder / "outputs" / kind

    return run_of


def codes_of(sae, x):
    codes = sae.encode(x, encode_topk)
    return to_dense(codes, sae.num_latents), sae.decode(codes, x)


def compare(one, other, tolerance=1e-4):
    torch.manual_seed(0)
    x = one.b_dec_E[: one.width] + 3 * torch.randn(64, one.width)
    for mine, theirs in zip(codes_of(one, x), codes_of(other, x), strict=True):
        assert (mine - theirs).abs().max() <= tolerance * mine.abs().max()


def says(run: Path, words, capfd, code=0) -> tuple[str, str]:
    """Standard output and error of a command in this process."""
    assert cli.main(words) == code
    out, err = capfd.readouterr()
    return out, err


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_in_every_format_is_the_dictionary(runs, kind, capfd):
    run = runs(kind)
    before = load_exported(run / "export")
    words = [word for name in ("saelens", *HELD[kind]) for word in ("--format", name)]
    out, _ = says(run, ["export", str(run), *words], capfd)
    assert out.split() == [str(run / "export"), *(str(run / "export" / name) for name in HELD[kind])]
    for name in ("saelens", *HELD[kind]):
        back = FORMATS[name].read(run / "export" / FORMATS[name].folder)
        compare(before, back)
        assert back.metadata["context_size"] == 256 and back.metadata["prepend_bos"] is True
    assert before.metadata["model_class_name"] == "AutoModelForCausalLM"
    assert before.metadata["model_from_pretrained_kwargs"] == {}
    hook = "model.layers.1.mlp:in" if kind == "skip" else "model.layers.1"
    assert before.metadata["hook_name"] == before.metadata["hf_hook_name"] == hook
    assert before.metadata.get("hook_name_out") == ("model.layers.1.mlp" if kind == "skip" else None)


@pytest.mark.parametrize("kind", ["matryoshka", "relu", "skip"])
def test_what_was_exported_is_imported_and_trained_on(runs, kind, tmp_path):
    run, theirs = runs(kind), HELD[kind][-1]
    assert warm(run.parent.parent, "export", str(run), "--format", theirs).returncode == 0
    source = tmp_path / "theirs"
    shutil.copytree(run / "export" / theirs, source)
    options = ["name=theirs", *TINY[2:-1], "eval.tokens=1024", "eval.ce_tokens=512", *SHORT]
    options += [word for word in KINDS[kind] if "hook" in word]
    done = warm(tmp_path, "import", str(source), *options)
    assert (done.returncode, done.stdout.strip()) == (0, "outputs/theirs"), done.stderr
    imported = tmp_path / "outputs" / "theirs"
    before = load_exported(run / "export")
    compare(before, load_exported(imported / "export"))
    config = OmegaConf.load(imported / "config.yaml")
    assert config.sae.num_latents == 1024 and config.sae.kind == ("topk" if kind == "skip" else kind)
    if kind == "matryoshka":
        done = warm(tmp_path, "eval", "outputs/theirs")
        assert done.returncode == 0, done.stderr
        summary = json.loads((imported / "summary.json").read_text())
        assert summary["status"] == "imported" and summary["imported_from"] == str(source)
        assert summary["eval_tokens"] == 1024 and 0 < summary["fvu"] < 2 and summary["ce_sae"] > 0

    # A rate of next to nothing: what comes out is what went in, under another first batch's scaling.
    train(tmp_path, "on", "sae.start=outputs/theirs", "optim.lr=1e-12", *SHORT, *KINDS[kind], "seed=1")
    compare(before, load_exported(tmp_path / "outputs" / "on" / "export"), tolerance=1e-3)


def test_an_imported_run_is_exported_in_other_formats(runs, tmp_path):
    run = runs("topk")
    source = shutil.copytree(run / "export", tmp_path / "source")
    done = warm(tmp_path, "import", str(source), "name=again", *TINY[2:])
    assert done.returncode == 0, done.stderr
    words = ["--format", "saelens", "--format", "sparsify"]
    done = warm(tmp_path, "export", "outputs/again", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "again" / "export"
    assert torch.equal(
        load_file(folder / "sparsify" / "sae.safetensors")["W_dec"],
        load_file(source / "sae_weights.safetensors")["W_dec"],
    )
    done = warm(tmp_path, "import", str(source), "name=again")
    assert done.returncode == 2 and "again exists; choose another name= or output=" in done.stderr


def test_what_the_user_gives_at_import_travels_on(runs, tmp_path, monkeypatch, capfd):
    """Files that say nothing, or another model, of a dictionary whose folder is named by its place."""
    source = tmp_path / "theirs" / "layers.1"
    sae = load_exported(runs("topk") / "export")
    sae.metadata = {"model_name": "someone/other", "prepend_bos": False}
    FORMATS["sparsify"].write(source, sae)
    monkeypatch.chdir(tmp_path)
    small = [*TINY[2:-1], "eval.tokens=512", "eval.ce_tokens=0"]
    words = ["import", "theirs/layers.1", "name=mine", "llm.name=embedded", *small]
    _, err = says(tmp_path, words, capfd, code=2)
    assert "does not say its hook; write hook=..., its folder's name suggests hook=layers.1" in err
    _, err = says(tmp_path, [*words, "hook=layers.1", "tokens.context=64"], capfd)
    assert "the files name llm.name=someone/other; used on llm.name=embedded" in err
    says(
        tmp_path, ["export", "outputs/mine", "--format", "saelens", "--format", "dictionary_learning"], capfd
    )
    export = tmp_path / "outputs" / "mine" / "export"
    said = json.loads((export / "cfg.json").read_text())["metadata"]
    assert said["model_name"] == "embedded" and said["context_size"] == 64 and said["prepend_bos"] is False
    assert said["hook_name"] == "model.layers.1" and said["model_class_name"] == "AutoModelForCausalLM"
    trainer = json.loads((export / "dictionary_learning" / "config.json").read_text())["trainer"]
    assert (trainer["lm_name"], trainer["layer"]) == ("embedded", 1)
    assert trainer["submodule_name"] == "model.layers.1" and trainer["trainer_class"] == "TopKTrainer"
    # From another folder; and what the files say of BOS stands beside the numbers.
    monkeypatch.chdir(tmp_path / "theirs")
    out, _ = says(tmp_path, ["eval", "../outputs/mine", "eval.baselines=false"], capfd)
    assert "caution: the dictionary was trained without a token at the beginning of sequences" in out


def test_a_run_that_another_command_works_in_is_left_alone(runs, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sae_dist.core.owner.DIES_WITHIN_S", 0.0)
    run = shutil.copytree(runs("topk"), tmp_path / "run")
    (run / "summary.json").unlink()
    other = claim(run, "trained")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if ".owner" not in path.name}
    for command in ("eval", "export", "report", "resume"):
        _, err = says(run, [command, str(run)], capfd, code=2)
        assert f"{run} is being trained by pid " in err and err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if ".owner" not in path.name} == before
    other.release()


def test_an_unfinished_run_is_exported_as_it_stands_and_that_is_said(runs, tmp_path, capfd):
    run = shutil.copytree(runs("topk"), tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.train_tokens = 1920
    OmegaConf.save(config, run / "config.yaml")
    out, err = says(run, ["export", str(run)], capfd)
    assert out == f"{run / 'export'}\n" and err == f"{run} is unfinished: this is its step 4 of 10\n"


def test_a_folder_for_the_hub(runs, tmp_path, capfd):
    run = shutil.copytree(runs("topk"), tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"fvu": 0.1234, "eval_tokens": 500000}))
    words = [
        "export",
        str(run),
        "--format",
        "saelens",
        "--format",
        "dictionary_learning",
        "--push",
        "me/mine",
    ]
    out, _ = says(run, [*words, "--folder-only"], capfd)
    hub = run / "hub"
    assert out == f"{hub}\n"
    files = sorted(path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "dictionary_learning/ae.pt",
        "dictionary_learning/ae.pt.sha256",
        "dictionary_learning/config.json",
        "saelens/cfg.json",
        "saelens/sae_weights.safetensors",
        "saelens/sae_weights.safetensors.sha256",
    ]
    card = (hub / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    found = OmegaConf.create(header)
    assert found.library_name == "saelens" and "sparse-autoencoder" in found.tags
    assert "| hook | model.layers.1 |" in body and "| latents | 1,024 |" in body and "| k | 16 |" in body
    assert "| fraction of variance unexplained | 0.1234 |" in body and "500,000" in body
    assert 'SAE.from_pretrained("me/mine", "saelens")' in body and "sparsify" not in body
    compare(load_exported(run / "export"), load_exported(hub / "saelens"))
    # There is no network in tests: the folder stays, and the line says how to go on.
    _, err = says(run, words, capfd, code=1)
    assert err.count("\n") == 1 and f"{hub} is ready, but the Hub rejected it" in err
    assert f"hf upload me/mine {hub}" in err and (hub / "README.md").is_file()


OF_WHAT_IS_DAMAGED = ("train sae.start={torn}", "import {torn}/export name=x", "eval {torn}", "report {torn}")
BAD = [
    ("export {run} --format onnx", "invalid choice: 'onnx'", "saelens"),
    ("export {run} --folder-only", "--folder-only", "--push"),
    ("export {run} --push nobody", "--push nobody", "organisation/name"),
    ("export {run} {run}", "unrecognized arguments", "--help"),
    ("export", "RUN", "--help"),
    ("export {empty}", "empty is not a run folder", "config.yaml"),
    ("export {relu} --format sparsify", "a relu dictionary, only topk", "dictionary_learning"),
    ("export {skip} --format dictionary_learning", "only autoencoders", "--format saelens or sparsify"),
    ("import", "FOLDER", "--help"),
    ("import {empty} name=x", "empty contains none of", "sae.safetensors"),
    ("import {export}", "name must be given", "name="),
    ("import {export} name=x --format sparsify", "sae.safetensors does not exist", "cfg.json"),
    ("import {export} name=x hook=layers.9", "hook=layers.9", "nearest"),
    ("import {export} name=x hook=layers.1.mlp.up_proj", "width 256", "choose another hook"),
    ("import {export} name=x sae.num_latnets=3", "sae.num_latnets", "sae.num_latents"),
    ("import {hookless} name=x llm.name=embedded", "does not say its hook", "hook="),
    ("train sae.start={empty}", "empty has no cfg.json", "sae-dist import"),
    ("train sae.start={run} sae.num_latents=512", "has 1024 latents", "sae.num_latents=1024"),
    ("train sae.start={run} hook=layers.1.mlp.up_proj", "for activations of width 256", "another hook"),
    ("train sae.start={run} sae=relu sae.sparsity=1", "is a topk dictionary", "sae=topk"),
    ("train sae.start={skip}", "is a transcoder with skip", "target_hook"),
    ("train sae.start={relu}", "is a relu dictionary", "sae=relu"),
    ("train sae.start={long}", "decoder rows of norm", "unit rows"),
    ("train sae=jumprelu sae.start={low}", "thresholds of 0 or less", "logarithm"),
    *((line, "weights.safetensors is not what was written", "copy it again") for line in OF_WHAT_IS_DAMAGED),
]


@pytest.mark.parametrize(("line", "names", "fix"), BAD, ids=[row[0] for row in BAD])
def test_wrong_words_and_folders(runs, tmp_path, monkeypatch, capfd, line, names, fix):
    where = tmp_path / "inputs"
    (where / "empty").mkdir(parents=True)
    places = {name: runs(name) for name in KINDS}
    places |= {"run": places["topk"], "export": places["topk"] / "export", "empty": where / "empty"}
    sae = load_exported(places["export"])
    hookless, long = places["hookless"], places["long"] = where / "hookless", where / "long"
    sae.metadata = {}
    FORMATS["sparsify"].write(hookless, sae)
    sae.W_dec_FE = 2 * sae.W_dec_FE
    FORMATS["saelens"].write(long, sae)
    sae.kind, sae.k, sae.threshold_F = "jumprelu", None, torch.zeros(sae.num_latents)
    places["low"] = where / "low"
    FORMATS["saelens"].write(places["low"], sae)
    if "{torn}" in line:
        places["torn"] = shutil.copytree(places["run"], where / "torn")
        with open(places["torn"] / "export" / "sae_weights.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = [word.format(**places) for word in line.split()]
    if words[0] == "train":
        words[1:1] = TINY[1:]

    out, err = says(tmp_path, words, capfd, code=2)

    assert out == "" and err.count("\n") == 1 and err.startswith("sae-dist: error: "), err
    assert names in err and fix in err
    assert list((tmp_path / "here").iterdir()) == []
