"""What W&B is given, read back from the files of offline runs."""

import json
import os

import pytest
from matplotlib.figure import Figure

from sae_dist.config.run import RunConfig, save_config
from sae_dist.core.errors import ConfigError
from sae_dist.metrics.catalogue import known
from sae_dist.metrics.dashboard import dashboard
from sae_dist.metrics.wandb_media import publish
from sae_dist.metrics.wandb_sink import WandbSink
from tests.helpers.wandb_files import history, of_folder, of_kind, summary

FOUND = {
    "tokens": 200,
    "steps": 20,
    "status": "finished",
    "fvu": 0.25,
    "ce_recovered": None,
    "ce_reason": "eval.ce_tokens=0",
    "gpu_hours": 1.5,
    "density": {"log10_edges": [-2.0, -1.0, 0.0], "latents": [3, 5], "silent": 0},
}


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def config(name="a-run") -> RunConfig:
    cfg = RunConfig(name=name)
    cfg.metrics.wandb, cfg.metrics.group = "offline", "a-sweep"
    return cfg


def write(sink, steps):
    for step in steps:
        sink.write({"step": step, "tokens": 10 * step, "loss/fvu": 1 / step})
    sink.close()


def test_config_groups_axis_and_rows_of_a_run_that_goes_on(tmp_path, capfd):
    """The second part repeats steps 3 and 4, as one that goes on from a checkpoint does; none is dropped."""
    write(WandbSink(config(), tmp_path, "abc"), range(1, 5))
    write(WandbSink(config(), tmp_path, "abc"), range(3, 7))
    found = of_folder(tmp_path)
    runs = of_kind(found, "run")
    assert {run.run_id for run in runs} == {"abc"} and {run.run_group for run in runs} == {"a-sweep"}
    assert runs[0].project == "sae_dist" and runs[0].job_type == tmp_path.name
    values = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert values["groups"] == {"sweep": "a-sweep", "run": tmp_path.name, "dictionary": None}
    assert values["batch"] == 2048 and values["metrics"]["wandb"] == "offline"
    rows = history(found)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert [row["tokens"] for row in rows] == [10 * row["step"] for row in rows]
    axes = {metric.name or metric.glob_name: metric.step_metric for metric in of_kind(found, "metric")}
    assert axes["*"] == "tokens" or axes["loss/fvu"] == "tokens"
    assert capfd.readouterr().err.count("WANDB_RESUME=allow wandb sync") == 2


def test_a_dictionary_of_a_grid_is_grouped_by_its_run(tmp_path):
    (tmp_path / "k=8").mkdir()
    save_config(config(), tmp_path / "config.yaml")
    write(WandbSink(config("k=8"), tmp_path / "k=8", "abc"), [1])
    (run,) = of_kind(of_folder(tmp_path / "k=8"), "run")
    values = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert values["groups"] == {"sweep": "a-sweep", "run": tmp_path.name, "dictionary": "k=8"}
    assert run.display_name == "k=8" and run.job_type == tmp_path.name


def test_alerts(tmp_path):
    sink = WandbSink(config(), tmp_path, "abc")
    sink.alert("dead latents are rising", "20 % at step 3")
    sink.close()
    (alert,) = of_kind(of_folder(tmp_path), "alert")
    assert (alert.title, alert.text, alert.level) == ("dead latents are rising", "20 % at step 3", "WARN")


def finished(folder) -> None:
    write(WandbSink(config(), folder, "abc"), [1, 2])
    (folder / "plots").mkdir()
    Figure().savefig(folder / "plots" / "loss_fvu.png")
    (folder / "export").mkdir()
    (folder / "export" / "cfg.json").write_text("{}")
    (folder / "checkpoints" / "step_2").mkdir(parents=True)
    (folder / "checkpoints" / "step_2" / "scalars.json").write_text("{}")
    (folder / "checkpoints" / "latest").write_text("step_2\n")


def test_an_evaluated_run_has_numbers_a_table_a_histogram_and_plots(tmp_path):
    finished(tmp_path)
    publish(config(), tmp_path, FOUND)
    found = of_folder(tmp_path)
    last = history(found)[-1]
    assert (last["tokens"], last["step"], last["eval/fvu"]) == (200, 20, 0.25)
    assert "eval/ce_recovered" not in last, "null is no number"
    assert last["eval/density"]["_type"] == "histogram" and last["eval/density"]["values"] == [3, 5]
    assert last["plots/loss_fvu"]["_type"] == "image-file"
    assert last["eval/table"]["_type"] == "table-file" and last["eval/table"]["nrows"] == 1
    names = {name for name in last if not name.startswith("_")}
    assert all(known(name.split(".")[0]) for name in names), names
    assert summary(found)["summary/gpu_hours"] == 1.5
    assert {run.run_id for run in of_kind(found, "run")} == {"abc"}
    assert not [each for each in of_kind(found, "artifact") if each.type == "model"], "nobody asked for it"


def test_checkpoint_and_export_are_uploaded_if_asked(tmp_path):
    finished(tmp_path)
    cfg = config()
    cfg.metrics.upload = True
    publish(cfg, tmp_path, FOUND)
    requests = of_kind(of_folder(tmp_path), "request")
    artifacts = of_kind(of_folder(tmp_path), "artifact") + [
        each.log_artifact.artifact for each in requests if each.HasField("log_artifact")
    ]
    (model,) = [each for each in artifacts if each.type == "model"]
    assert {entry.path for entry in model.manifest.contents} == {
        "export/cfg.json",
        "checkpoint/scalars.json",
    }


def test_a_run_without_wandb_gets_nothing(tmp_path, capfd):
    publish(config(), tmp_path, FOUND)
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""


def test_a_wrong_key_is_one_line_and_the_run_goes_on_offline(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    cfg = config()
    cfg.metrics.wandb = "auto"
    write(WandbSink(cfg, tmp_path, "abc"), [1])
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith("wandb (online) failed, the run goes on: ")
    assert "API key" in said[0] and "wandb sync" in said[1]
    assert [row["step"] for row in history(of_folder(tmp_path))] == [1]


@pytest.mark.parametrize("target", ["a/b/c", "", "a/"])
def test_a_dashboard_needs_a_project(target):
    with pytest.raises(ConfigError, match="is not a W&B project"):
        dashboard(target)


def test_a_dashboard_needs_a_key():
    pytest.importorskip("wandb_workspaces")
    with pytest.raises(ConfigError, match="no W&B key was found; run wandb login"):
        dashboard("sae_dist")


def test_a_dashboard_with_a_wrong_key(monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigError, match="W&B rejected the key: .*; run wandb login"):
        dashboard("someone/sae_dist")


def test_the_dashboard_s_panels():
    pytest.importorskip("wandb_workspaces")
    from sae_dist.metrics.dashboard import SECTIONS, workspace

    spec = workspace("someone", "sae_dist")._to_model().model_dump(by_alias=True)
    assert (spec["entity"], spec["project"]) == ("someone", "sae_dist")
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    assert [each["name"] for each in sections] == [name for name, _ in SECTIONS]
    panels = [panel["config"] for each in sections for panel in each["panels"]]
    assert {panel["xAxis"] for panel in panels} == {"tokens"}
    assert {"loss/fvu"} in [set(panel["metrics"]) for panel in panels]
    assert len(panels) == sum(len(each) for _, each in SECTIONS)


def test_folders_that_cannot_be_made_at_home_are_in_the_run_folder(tmp_path, monkeypatch, capfd):
    """Tables and images are staged there: without them the last numbers would be lost."""
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/proc/nohome")
    write(WandbSink(config(), tmp_path, "abc"), range(1, 5))
    save_config(config(), tmp_path / "config.yaml")
    publish(config(), tmp_path, FOUND)
    assert "failed" not in (said := capfd.readouterr().err) and "no final numbers" not in said
    assert history(of_folder(tmp_path))[-1]["eval/fvu"] == 0.25
    # What the environment or the home folder has is left alone.
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("WANDB_DATA_DIR")
    write(WandbSink(config(), tmp_path, "abc"), [5])
    assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "cache") and "WANDB_DATA_DIR" not in os.environ


@pytest.mark.parametrize("name", ["wandb", ".wandb"])
def test_the_working_folder_does_not_say_where_the_key_is_sent(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "a1b2" * 10)
    (tmp_path / name).mkdir()
    (tmp_path / name / "settings").write_text(
        "[default]\nproject = x\nbase_url = https://elsewhere.example\n"
    )
    cfg = config()
    cfg.metrics.wandb = "online"
    (tmp_path / "run").mkdir()
    sink = WandbSink(cfg, tmp_path / "run", "id")
    sink.close()
    said = capfd.readouterr().err
    assert (
        f"{name}/settings of the working folder sets base_url, which is not taken from a file there" in said
    )
    assert sink._mode == "offline"


def test_what_looks_like_an_interpolation_or_a_control_character_is_text():
    from sae_dist.metrics.wandb_sink import shown

    assert shown({"a\x1b": ["${oc.env:HOME}", 1, None, {"b": "\u202e"}]}) == {
        "a\\x1b": ["${oc.env:HOME}", 1, None, {"b": "\\u202e"}]
    }
