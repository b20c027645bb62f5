"""Recorder, sinks, curves."""

import json
import sys

import pytest
import torch

from sae_dist.config.run import RunConfig
from sae_dist.metrics.jsonl import JsonlSink, read_rows
from sae_dist.metrics.plots import plot_curves
from sae_dist.metrics.recorder import Recorder
from sae_dist.metrics.sinks import ConsoleSink, make_sinks
from sae_dist.metrics.wandb_sink import WandbSink, wandb_mode
from tests.helpers.ranks import run_ranks


def record_on_two_ranks() -> tuple[dict[str, float], list[str]]:
    rank, calls = torch.distributed.get_rank(), []

    def reduce(values: torch.Tensor, kind: str) -> torch.Tensor:
        calls.append(kind)
        op = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}[kind]
        torch.distributed.all_reduce(values, op)
        return values

    recorder = Recorder(reduce)
    for step in range(3):
        recorder.record("loss/sum", torch.tensor(float(step)), "sum")
        recorder.record("loss/mean", torch.tensor(10.0 * rank + step), "mean")
        recorder.record("loss/max", torch.tensor(100.0 * rank - step), "max")
        recorder.record("optim/lr", 0.1 * step, "last")
        recorder.record("perf/host", 2, "sum")
    return recorder.flush(), calls


def test_recorder_reduces_over_window_and_ranks_with_one_collective_per_kind():
    for row, calls in run_ranks(record_on_two_ranks, 2):
        assert row == {
            "loss/sum": 6.0,
            "loss/mean": 6.0,
            "loss/max": 100.0,
            "optim/lr": 0.2,
            "perf/host": 12.0,
        }
        assert calls == ["sum", "max"]


def test_flush_forgets_and_recorded_tensors_may_change_afterwards():
    recorder = Recorder(lambda values, kind: values)
    value = torch.ones((), dtype=torch.float64)
    recorder.record("latents/dead", value, "last")
    value.fill_(7.0)
    assert recorder.flush() == {"latents/dead": 1.0}
    assert recorder.flush() == {}
    recorder.record("latents/dead", 3.0, "max")
    recorder.record("latents/dead", torch.tensor(2.0), "max")
    assert recorder.flush() == {"latents/dead": 3.0}


def test_jsonl_resumes_without_later_steps_or_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path, 0)
    for step in (10, 20, 30):
        sink.write({"step": step, "tokens": step * 5, "loss/fvu": float("nan") if step == 10 else 0.5})
    assert len(path.read_text().splitlines()) == 3, "each line is readable at once"
    with open(path, "a") as file:
        file.write('{"step": 40, "tok')
    resumed = JsonlSink(path, 20)
    resumed.write({"step": 30, "tokens": 150})
    resumed.close()
    assert [row["step"] for row in read_rows(path)] == [10, 20, 30]
    assert json.loads(path.read_text().splitlines()[0])["loss/fvu"] is None
    JsonlSink(path, 0).close()
    assert path.read_text() == ""


def test_console_prints_occasional_plain_lines_without_a_terminal(capsys):
    sink = ConsoleSink(1000, 0)
    for step in range(1, 11):
        sink.write(
            {
                "step": step,
                "tokens": step * 100,
                "loss/fvu": 1 / step,
                "sparsity/l0": 32.0,
                "latents/dead_fraction": 0.25,
                "perf/tokens_per_second": 1234.5,
            }
        )
    sink.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("step 1  tokens 100 of 1,000  1,234 tok/s  ETA 00:")
    assert last.endswith("ETA 00:00  FVU 0.1000 L0 32.0 dead 25.0%") and "step 10" in last


def test_time_left_counts_the_evaluation_and_waits_for_the_second_row_after_a_resume(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("sae_dist.metrics.sinks.time.monotonic", lambda: now[0])
    sink = ConsoleSink(1000, 400, 200)
    for seconds, tokens in ((60.0, 500), (80.0, 600), (100.0, 700)):
        now[0] = seconds
        sink.write({"step": tokens // 100, "tokens": tokens, "loss/fvu": 0.5})
    sink.close()
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "step 5  tokens 500 of 1,000  FVU 0.5000"
    # 100 tokens in 20 s, 400 to train and 200 to come.
    assert second == "step 6  tokens 600 of 1,000  ETA 02:00 with evaluation  FVU 0.5000"
    assert "ETA 01:40 with evaluation" in third


def test_console_shows_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sink = ConsoleSink(1000, 400)
    sink.write({"step": 5, "tokens": 500, "loss/fvu": 0.25})
    sink.close()
    shown = capsys.readouterr().err
    assert "50%" in shown and "FVU 0.2500" in shown


@pytest.fixture
def no_wandb_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_auto_is_online_only_with_a_key_and_honours_wandb_mode(no_wandb_key, monkeypatch):
    assert wandb_mode("auto") == "offline"
    for host in ("elsewhere.org", "api.wandb.ai", "api.forge.coreweave.com"):
        no_wandb_key.write_text(f"machine {host}\n  login user\n  password " + "0" * 40 + "\n")
        assert wandb_mode("auto") == ("offline" if host == "elsewhere.org" else "online")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_mode("auto") == "offline" and wandb_mode("online") == "online"


def test_wandb_offline_keeps_its_files_in_the_run_folder_and_says_how_to_sync(no_wandb_key, tmp_path, capfd):
    cfg = RunConfig(name="a-run")
    cfg.metrics.console = False
    sinks = make_sinks(cfg, tmp_path, resume_step=0, run_id="abc123")
    for step in (1, 2):
        for sink in sinks:
            sink.write({"step": step, "tokens": 10 * step, "loss/fvu": 0.5})
    for sink in sinks:
        sink.close()
    (offline,) = (tmp_path / "wandb").glob("offline-run-*-abc123")
    assert list(offline.glob("*.wandb"))
    shown = capfd.readouterr().err.splitlines()
    parts = tmp_path / "wandb" / "offline-run-*-abc123"
    assert shown == [f"wandb: offline; to upload: WANDB_RESUME=allow wandb sync {parts}"]


def test_a_broken_wandb_is_one_warning_and_the_run_goes_on(no_wandb_key, tmp_path, capfd):
    cfg = RunConfig(name="a-run")
    cfg.metrics.wandb = "offline"
    sink = WandbSink(cfg, tmp_path, "an id/with a slash")
    sink.write({"step": 1, "tokens": 1})
    sink.close()
    (warning,) = capfd.readouterr().err.splitlines()
    assert "wandb (offline) failed, the run goes on" in warning


def test_curves_are_drawn_for_what_was_recorded(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        sink.write({"step": step, "tokens": step * 100, "loss/fvu": 1 / step, "latents/dead_fraction": 0.0})
    sink.close()
    names = [path.name for path in plot_curves(tmp_path)]
    assert names == ["loss_fvu.png", "latents_dead_fraction.png"]
    assert (tmp_path / "plots" / "loss_fvu.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_of_one_process_are_two_runs_of_wandb(no_wandb_key, tmp_path, capfd):
    cfg = RunConfig(name="one")
    cfg.metrics.wandb = "offline"
    sinks = [WandbSink(cfg, tmp_path / name, run_id) for name, run_id in (("a", "id1"), ("b", "id2"))]
    for sink in sinks:
        sink.write({"step": 1, "tokens": 10, "loss/fvu": 0.5})
    sinks[0].close()
    sinks[1].write({"step": 2, "tokens": 20, "loss/fvu": 0.4})
    sinks[1].close()
    said = capfd.readouterr().err
    assert "failed" not in said
    for name, run_id in (("a", "id1"), ("b", "id2")):
        assert list((tmp_path / name / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))
