"""The run folder: whole or absent, found again, never somebody else's."""

import json
import re
import subprocess
from dataclasses import replace

import pytest

from sae_dist.config.resolve import resolve
from sae_dist.config.run import load_config, parse_counts
from sae_dist.core.errors import ConfigError
from sae_dist.launch import freeze as module
from sae_dist.launch.compose import compose_config
from sae_dist.launch.freeze import Frozen
from sae_dist.launch.length import as_begun, with_length
from sae_dist.launch.provenance import provenance
from sae_dist.launch.settle import Settled

WIDTH = 16


def config(tmp_path, *overrides):
    base = [f"output={tmp_path}/out/deep", "name=run", "activations=file", "activations.path=a.npy"]
    return resolve(compose_config([*base, *overrides]), None, WIDTH)


def freeze(cfg, width) -> Frozen:
    """As a command does that ends at once."""
    frozen = module.freeze(cfg, width)
    frozen.release()
    return frozen


def finish(folder):
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))


def test_a_new_folder_is_whole(tmp_path):
    cfg = config(tmp_path)
    frozen = freeze(cfg, WIDTH)
    assert not frozen.finished and frozen.folder == tmp_path / "out" / "deep" / "run"
    assert sorted(path.name for path in frozen.folder.iterdir()) == ["config.yaml", "provenance.json"]
    assert load_config(frozen.folder / "config.yaml") == cfg


def test_discard_takes_back_all_that_was_made_and_no_more(tmp_path):
    freeze(config(tmp_path), WIDTH).discard()
    assert list(tmp_path.iterdir()) == []
    freeze(config(tmp_path, "name=first"), WIDTH)
    freeze(config(tmp_path), WIDTH).discard()
    assert [path.name for path in (tmp_path / "out" / "deep").iterdir()] == ["first"]


def test_a_folder_that_was_there_is_never_discarded(tmp_path):
    folder = freeze(config(tmp_path), WIDTH).folder
    freeze(config(tmp_path, "resume=auto"), WIDTH).discard()
    assert (folder / "config.yaml").exists()


def test_what_was_trained_is_never_discarded(tmp_path):
    frozen = freeze(config(tmp_path), WIDTH)
    (frozen.folder / "checkpoints" / "step_00000008").mkdir(parents=True)
    frozen.discard()
    assert (frozen.folder / "config.yaml").exists()


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_config", full)
    with pytest.raises(ConfigError, match="output=.*No space left on device"):
        freeze(config(tmp_path), WIDTH)
    assert list(tmp_path.iterdir()) == []


def test_unfinished_needs_resume_and_remembers_it(tmp_path):
    folder = freeze(config(tmp_path), WIDTH).folder
    with pytest.raises(
        ConfigError, match="run is unfinished, at step 0 of 976; continue with sae-dist resume .*/run, or"
    ):
        freeze(config(tmp_path), WIDTH)
    frozen = freeze(config(tmp_path, "resume=auto", "topology.shard=2"), WIDTH)
    assert frozen.folder == folder and not frozen.finished
    assert load_config(folder / "config.yaml").topology.shard == 2
    assert len(json.loads((folder / "provenance.json").read_text())["resumed"]) == 1


def test_a_folder_that_another_command_works_in_is_refused_and_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_dist.core.owner.DIES_WITHIN_S", 0.0)
    first = module.freeze(config(tmp_path), WIDTH)

    def files() -> dict[str, str]:
        """All but the owner's heart, which goes on beating."""
        found = {path.name: path.read_text() for path in first.folder.iterdir()}
        return {name: re.sub(r'"beat": \d+', "", text) for name, text in found.items()}

    before = files()
    for words in ([], ["resume=auto"], ["resume=auto", "topology.shard=2"]):
        with pytest.raises(ConfigError, match="run is being trained by pid .*; nothing was changed"):
            freeze(config(tmp_path, *words), WIDTH)
    assert files() == before
    first.release()
    assert not freeze(config(tmp_path, "resume=auto"), WIDTH).finished


def test_of_two_that_make_a_folder_at_once_the_slower_is_refused(tmp_path, monkeypatch):
    """The faster makes it after the slower has seen that there is none."""
    monkeypatch.setattr("sae_dist.core.owner.DIES_WITHIN_S", 0.0)
    cfg, won = config(tmp_path), []

    def meanwhile(*_):
        monkeypatch.undo()
        monkeypatch.setattr("sae_dist.core.owner.DIES_WITHIN_S", 0.0)
        won.append(module.freeze(cfg, WIDTH))
        return {}

    monkeypatch.setattr(module, "provenance", meanwhile)
    with pytest.raises(ConfigError, match="run is being trained by pid"):
        freeze(cfg, WIDTH)
    assert sorted(path.name for path in won[0].folder.parent.iterdir()) == ["run"]
    won[0].release()
    assert sorted(path.name for path in won[0].folder.iterdir()) == ["config.yaml", "provenance.json"]


def test_paths_are_frozen_absolute_and_named_as_they_were_written(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.npy").touch()
    found = []
    for name in ("one", "two"):
        monkeypatch.chdir(tmp_path / name)
        cfg = parse_counts(compose_config(["output=out", "activations=file", "activations.path=a.npy"]))
        folder = freeze(resolve(cfg, None, WIDTH), WIDTH).folder.absolute()
        found.append(folder)
        assert load_config(folder / "config.yaml").activations.path == str(tmp_path / name / "a.npy")
        starts = json.loads((folder / "provenance.json").read_text())
        assert starts["written"] == {"activations.path": "a.npy"}
        again = resolve(replace(cfg, resume="auto"), None, WIDTH)
        assert freeze(again, WIDTH).folder.absolute() == folder
    assert found[0].name == found[1].name


def test_finished_is_finished_whatever_resume_says(tmp_path):
    finish(freeze(config(tmp_path), WIDTH).folder)
    for resume in ("never", "auto"):
        frozen = freeze(config(tmp_path, f"resume={resume}"), WIDTH)
        assert frozen.finished


def test_another_config_is_refused_with_what_differs(tmp_path):
    folder = freeze(config(tmp_path), WIDTH).folder
    finish(folder)
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"\(sae.k is 32 there and 8 here\); choose another name="):
        freeze(config(tmp_path, "sae.k=8", "resume=auto"), WIDTH)
    assert (folder / "config.yaml").read_text() == before


def test_somebody_elses_folder_is_refused_and_an_empty_one_used(tmp_path):
    folder = tmp_path / "out" / "deep" / "run"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="no run folder"):
        freeze(config(tmp_path), WIDTH)
    (folder / "thesis.tex").unlink()
    assert freeze(config(tmp_path), WIDTH).folder == folder


def test_space_is_counted_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match="GiB free.*checkpoint.keep"):
        freeze(config(tmp_path, "sae.num_latents=40000000000"), WIDTH)
    assert list(tmp_path.iterdir()) == []


def test_provenance_holds_no_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    found = provenance()
    assert "very-secret" not in json.dumps(found)
    assert found["versions"]["torch"] and found["host"] and found["command"].startswith("sae-dist")


def test_provenance_of_an_install_in_another_repository_names_no_commit(tmp_path, monkeypatch):
    from sae_dist.launch import provenance as module

    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "theirs", "--allow-empty"]
    for command in (["init", "-q"], commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    (tmp_path / "provenance.py").write_text("")
    found = module.provenance()
    assert (found["commit"], found["diff"]) == (None, None)


def test_a_run_may_become_longer_and_keeps_what_its_first_length_filled_in(tmp_path):
    cfg = config(tmp_path, "train_tokens=2M")
    folder = freeze(cfg, WIDTH).folder
    finish(folder)
    asked = parse_counts(
        compose_config(
            [f"output={tmp_path}/out/deep", "name=run", "activations=file", "activations.path=a.npy"]
            + ["train_tokens=4M", "resume=auto"]
        )
    )
    begun = as_begun(asked, "config.yaml")
    assert begun.train_tokens == 2_000_000
    longer = with_length(Settled.of(begun, None, WIDTH, WIDTH), asked.train_tokens).cfg
    with pytest.raises(ConfigError, match="begun with train_tokens=2000000; continue it with resume=auto"):
        freeze(replace(longer, resume="never"), WIDTH)
    frozen = freeze(longer, WIDTH)
    assert not frozen.finished and not (folder / "summary.json").exists()
    now = load_config(folder / "config.yaml")
    assert now.train_tokens == 4_000_000 and now.sae.dead_after == cfg.sae.dead_after == 200_000
    with pytest.raises(ConfigError, match="train_tokens=2000000 is less than the 4000000"):
        freeze(replace(cfg, resume="auto"), WIDTH)
