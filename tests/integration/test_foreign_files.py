"""Folders and models that somebody else made run nothing, until the command says the word."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from sae_dist.cli import main
from sae_dist.commands.rank import run as run_as_rank
from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.config.trust import WRITES
from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.owner import claim
from sae_dist.core.process import own_command
from sae_dist.launch.freeze import Frozen
from sae_dist.launch.run import train_command
from sae_dist.launch.spawn import spawn
from sae_dist.launch.start import Role, start
from sae_dist.llm.facts import llm_facts
from sae_dist.tokens.hf import check_dataset
from sae_dist.tokens.shards import expand
from tests.helpers.commands import TINY
from tests.helpers.small_llm import SMALL, save_small_llm

CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig
class Config(LlamaConfig):
    pass
"""
QUIET = [*TINY, *SMALL, "sae.num_latents=64", "train_tokens=384", "name=run"]
WORD = "llm.trust_remote_code=true"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two steps, whose model then brings code along, and whose config asks for it."""
    folder = save_small_llm(tmp_path_factory.mktemp("trust"))
    here = os.getcwd()
    os.chdir(folder)
    try:
        train_command(QUIET)
    finally:
        os.chdir(here)
    marker = folder / "marker"
    (folder / "llm" / "evil.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "llm" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config"}
    (folder / "llm" / "config.json").write_text(json.dumps(config))
    frozen = folder / "outputs" / "run" / "config.yaml"
    frozen.write_text(frozen.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    (folder / "outputs" / "run" / "summary.json").unlink()
    return folder, marker


@pytest.fixture
def hostile(made, monkeypatch, tmp_path):
    folder, marker = made
    monkeypatch.chdir(folder)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker.unlink(missing_ok=True)
    return folder, marker


@pytest.mark.parametrize("command", ["report", "eval", "export", "resume"])
def test_a_run_folder_runs_no_code_of_its_model(command, hostile, capsys):
    _folder, marker = hostile
    assert main([command, "outputs/run"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].endswith(f"add the word to your command: {WORD}")
    assert not marker.exists()


def test_the_word_grants_it(hostile):
    """Else the test before this could not fail. What the code makes is no model of transformers."""
    _folder, marker = hostile
    assert main(["export", "outputs/run", WORD]) == 2
    assert marker.exists()


@pytest.mark.parametrize("key", sorted(WRITES))
def test_a_config_does_not_say_where_is_written(key, hostile):
    folder, _marker = hostile
    frozen = folder / "outputs" / "run" / "config.yaml"
    asked = frozen.read_text()
    content = yaml.safe_load(asked)
    content[key] = str(folder / "elsewhere") if key == "output" else "elsewhere"
    content["llm"] = {**content["llm"], "trust_remote_code": False, "name": "embedded"}
    content["hook"], before = "layers.0:out", {path for path in folder.rglob("*") if "run" not in path.parts}
    frozen.write_text(yaml.safe_dump(content, sort_keys=False))
    try:
        assert main(["export", "outputs/run"]) == 0
    finally:
        frozen.write_text(asked)
    assert {path for path in folder.rglob("*") if "run" not in path.parts} == before


def test_without_a_record_nothing_is_run_either(hostile, capsys):
    """A model that brings code, in a folder whose config does not say so."""
    folder, marker = hostile
    frozen = folder / "outputs" / "run" / "config.yaml"
    asked = frozen.read_text()
    frozen.write_text(asked.replace("trust_remote_code: true", "trust_remote_code: false"))
    try:
        assert main(["export", "outputs/run"]) in (0, 2)
    finally:
        frozen.write_text(asked)
    assert not marker.exists()


def test_what_a_page_shows_is_in_its_folder(hostile, tmp_path):
    """A link in the folder would put another file of this machine into the page."""
    from sae_dist.evaluation.report.page import pictures

    folder = tmp_path / "run"
    (folder / "plots").mkdir(parents=True)
    private = tmp_path / "private"
    private.write_bytes(b"\x89PNG\r\n of the reader")
    (folder / "plots" / "recovery.png").symlink_to(private)
    assert pictures(folder) == []
    (folder / "plots" / "recovery.png").unlink()
    (folder / "plots" / "recovery.png").write_bytes(private.read_bytes())
    assert len(pictures(folder)) == 1


@pytest.mark.long
def test_a_config_does_not_read_the_environment_into_a_page(hostile, monkeypatch, capsys):
    folder, _marker = hostile
    monkeypatch.setenv("PRIVATE", "of-the-reader")
    frozen = folder / "outputs" / "run" / "config.yaml"
    asked = frozen.read_text()
    content = yaml.safe_load(asked)
    content["metrics"]["project"] = content["tokens"]["column"] = "${oc.env:PRIVATE}"
    content["llm"]["trust_remote_code"] = False
    frozen.write_text(yaml.safe_dump(content, sort_keys=False))
    try:
        main(["report", "outputs/run"])
    finally:
        frozen.write_text(asked)
    written = [path.read_bytes() for path in (folder / "outputs" / "run").glob("*.html")]
    assert not any(b"of-the-reader" in each for each in written)
    assert "of-the-reader" not in "".join(capsys.readouterr())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no -P")
def test_processes_that_are_started_import_nothing_from_the_working_folder(tmp_path, monkeypatch):
    """The command itself does not; `python -m` would."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if Path(each or ".").resolve() != Path.cwd()])
    (tmp_path / "difflib.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'marker')!r}).touch()\n"
    )
    words = own_command()
    assert words[1] == "-P"
    done = subprocess.run([*words, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model_name", "${oc.env:HOME}", "would be resolved"),
        ("model_name", "a\nb", "control character"),
        ("hook_name", "x${seed}", "would be resolved"),
        ("context_size", 10**30, "too large"),
    ],
)
def test_a_foreign_config_is_read_as_values(key, value, says, tmp_path, monkeypatch, capsys):
    from sae_dist.export.saelens import export_saelens
    from tests.helpers.dictionaries import random_sae

    monkeypatch.chdir(tmp_path)
    export_saelens(tmp_path / "theirs", random_sae("topk", F=48, D=16, k=5))
    path = tmp_path / "theirs" / "cfg.json"
    content = json.loads(path.read_text())
    content.setdefault("metadata", {})[key] = value
    path.write_text(json.dumps(content))
    assert main(["import", "theirs", "name=theirs"]) == 2
    said = capsys.readouterr().err
    assert says in said or "cfg.json" in said
    assert os.environ["HOME"] not in said.replace(str(tmp_path), "")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["pandas", "sql", "iceberg"])
def test_loaders_that_run_what_they_read_are_refused(name, tmp_path):
    """The one of pickles is disabled in the library since its version 5."""
    for files in (str(tmp_path / "x.pkl"), None):
        with pytest.raises(ConfigError, match=f"tokens.dataset={name} is no loader that only reads"):
            check_dataset(TokensConfig(kind="hf", dataset=name, data_files=files))
    check_dataset(TokensConfig(kind="hf", dataset="json", data_files="x.jsonl"))
    check_dataset(TokensConfig(kind="hf", dataset="org/pandas"))


def test_braces_are_counted_before_they_are_written_out():
    with pytest.raises(ConfigError, match="stands for 1,000,000,000 names"):
        expand("x{000000000..999999999}.tar", "tokens.path")
    with pytest.raises(ConfigError, match="names, at most"):
        expand(20 * "{a,b,c}", "tokens.path")


def test_an_upload_stays_in_the_run_folder(tmp_path, monkeypatch):
    from sae_dist.metrics import wandb_media

    added = []
    artifact = SimpleNamespace(add_dir=lambda path, name: added.append(name))
    monkeypatch.setattr("wandb.Artifact", lambda *_, **__: artifact)
    (tmp_path / "checkpoints").mkdir()
    for name, there in (("../..", ["export"]), ("step_10", ["export", "checkpoint"])):
        added.clear()
        (tmp_path / "checkpoints" / "latest").write_text(name)
        wandb_media._artifact(tmp_path, "id")
        assert added == there


def test_a_model_config_fetches_no_kernel(tmp_path):
    save_small_llm(tmp_path)
    path = tmp_path / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "org/kernels"}))
    with pytest.raises(ConfigError, match="attn_implementation=org/kernels, code of a repository"):
        llm_facts(LlmConfig(name=str(tmp_path / "llm")), None)


def test_ranks_are_granted_what_their_command_was(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("sae_dist.launch.spawn._start", lambda words, *_: started.append(words) or stopped())
    granted = {"llm.trust_remote_code": True, "activations.path": "pipe:cat 'a b'/{}", "cluster.command": "x"}
    with pytest.raises(SaeDistError):
        spawn(tmp_path, 2, "train", granted=granted)
    given = []
    monkeypatch.setattr(
        "sae_dist.commands.rank._work_of", lambda role: lambda folder, words: given.append(words)
    )
    monkeypatch.setattr("sae_dist.commands.rank._end_with_parent", lambda pipe: None)
    for each in started:
        run_as_rank(each)
    assert given == 2 * [{key: granted[key] for key in ("llm.trust_remote_code", "activations.path")}]


def test_a_config_starts_no_thousands_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_dist.launch.spawn.spawn", lambda *_: pytest.fail("started"))
    role = Role("train", lambda folder: 5000, lambda folder, granted: None)
    with pytest.raises(ConfigError, match="5000 processes on one machine, at most"):
        start(lambda world: Frozen(tmp_path), role, lambda folder, granted: None, dict)


def stopped():
    """A rank that has failed."""
    done = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    done.wait()
    return done


@pytest.mark.parametrize("place", ["plots/loss.png", "logs/rank_1.log", "member/plots/loss.png", "seeds.csv"])
def test_a_file_that_leads_out_of_the_folder_is_not_written_over(place, tmp_path):
    private = tmp_path / "private"
    private.write_text("kept")
    link = tmp_path / "run" / place
    link.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    link.symlink_to(private)
    with pytest.raises(ConfigError, match="is a link to a file outside of the run folder"):
        claim(tmp_path / "run", "trained")
    link.unlink()
    (link.parent / "inside").touch()
    link.symlink_to(link.parent / "inside")
    claim(tmp_path / "run", "trained").release()
