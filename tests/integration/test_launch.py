"""The command around a run: found again, spawned, swept, and ended cleanly when something breaks."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from sae_dist.core.errors import Preempted
from sae_dist.launch.run import stopping_on_request
from tests.helpers.commands import rows
from tests.helpers.small_llm import SMALL_LLM, save_small_llm
from tests.helpers.warm import Command, warm

QUICK = ["debug=tiny", "eval.tokens=0"]
ON_TEXT = [*QUICK, *SMALL_LLM]
TWO = ["activations=synthetic", "topology.shard=2"]
"""Ranks that start in half the time: they need no language model."""
EMBEDDED = Path(__file__).parents[2] / "sae_dist" / "llm" / "embedded"


def our_line(done) -> str:
    """The one line of ours on stderr; no traceback anywhere."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("sae-dist: error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def test_a_run_is_found_again(tmp_path):
    save_small_llm(tmp_path)
    first = warm(tmp_path, "train", *ON_TEXT)
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "outputs").iterdir()
    assert run.name.startswith("llm-layers.1-topk-128-k8-")
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    written = (run / "metrics.jsonl").read_text()

    again = warm(tmp_path, "train", *ON_TEXT)
    assert (again.returncode, again.stderr) == (0, "") and f"{run.name} is finished" in again.stdout
    assert (run / "metrics.jsonl").read_text() == written

    other = warm(tmp_path, "train", *ON_TEXT, "sae.k=4", f"name={run.name}")
    assert other.returncode == 2 and "sae.k is 8 there and 4 here" in our_line(other)

    shutil.rmtree(run / "export")
    assert warm(tmp_path, "export", str(run)).returncode == 0
    assert warm(tmp_path, "eval", str(run)).returncode == 0


@pytest.mark.long
def test_spawned_ranks_log_and_leave_one_summary(tmp_path):
    done = warm(save_small_llm(tmp_path), "train", *ON_TEXT, "name=run", "topology=split")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "run"
    assert [path.name for path in sorted((run / "logs").iterdir())] == [f"rank_{n}.log" for n in range(3)]
    assert json.loads((run / "summary.json").read_text())["world_size"] == 3
    assert rows(run)[-1]["step"] == 32


def test_a_multirun_runs_every_combination(tmp_path):
    save_small_llm(tmp_path)
    words = [
        "-m",
        *ON_TEXT,
        "sae.num_latents=512",
        "sae.k=4,8",
        "name=widths",
        "train_tokens=4096",
        "checkpoint.every=null",
    ]
    done = warm(tmp_path, "train", *words, "eval.tokens=1024", "eval.ce_tokens=0")
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "outputs" / "widths"
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [run.name for run in runs] == ["sae.k=4", "sae.k=8"]
    assert {path.name for path in sweep.iterdir()} - {run.name for run in runs} == {"sweep.csv", "sweep.png"}
    assert str(sweep.relative_to(tmp_path) / "sweep.csv") in done.stdout
    assert all("group: widths" in (run / "config.yaml").read_text() for run in runs)
    assert [round(rows(run)[-1]["sparsity/l0"]) for run in runs] == [4, 8]
    done = warm(tmp_path, "report", "outputs/widths")
    assert done.returncode == 0 and (sweep / "report.html").read_text().count("<td>finished</td>") == 2
    for wrong in (["sae.num_latents=64", "sae.k=4,65"], ["hook=layers.0,layers.9"]):
        refused = warm(tmp_path, "train", *ON_TEXT, "-m", *wrong)
        key, last = wrong[-1].split("=")[0], wrong[-1].split(",")[-1]
        assert refused.returncode == 2 and f"{key}={last}" in our_line(refused)
        assert not (tmp_path / "outputs" / f"sweep_{key.split('.')[-1]}").exists(), refused.stderr


@pytest.mark.parametrize(
    "started", ["alone", pytest.param("spawned", marks=pytest.mark.long), "by a launcher"]
)
def test_input_found_wrong_by_a_rank_leaves_nothing(started, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED, model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    words = ["train", f"llm.name={model}", "debug=tiny", f"topology.shard={1 if started == 'alone' else 2}"]
    done = warm(tmp_path, *words, ranks=2 if started == "by a launcher" else 1)
    assert done.returncode == 2 and "does not load" in done.stderr
    assert started == "by a launcher" or our_line(done)
    assert not (tmp_path / "outputs").exists()


def test_activations_without_a_scale_are_one_line(tmp_path):
    np.save(tmp_path / "zeros.npy", np.zeros((20_000, 16), np.float32))
    done = warm(tmp_path, "train", *QUICK, "activations=file", "activations.path=zeros.npy")
    assert done.returncode == 1 and "all zeros" in our_line(done)


def test_centred_activations_come_back_in_the_export(tmp_path):
    """Far from zero a dictionary that does not centre sees little else; evaluation reads raw activations."""
    draw = np.random.default_rng(0)
    rows_ND = (draw.random((20_000, 64)) < 0.1) @ draw.normal(size=(64, 16)) + 50 * draw.normal(size=16)
    np.save(tmp_path / "acts.npy", rows_ND.astype(np.float32))
    words = ["debug=tiny", "activations=file", "activations.path=acts.npy", "sae.num_latents=128", "name=run"]
    done = warm(tmp_path, "train", *words, "activations.scaling=centred", "train_tokens=100k")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "run"
    summary, last = json.loads((run / "summary.json").read_text()), rows(run)[-1]
    assert summary["fvu"] == pytest.approx(last["loss/fvu"], rel=0.15)
    assert summary["fvu"] < 0.5 * summary["fvu_untrained"]
    centred = rows_ND - rows_ND.mean(0)
    assert summary["scales"][0] == pytest.approx(4 / np.linalg.norm(centred, axis=1).mean(), rel=0.05)


def test_ranks_stopped_before_they_can_save_are_preempted(tmp_path):
    process = Command(tmp_path, "train", *QUICK, *TWO, "train_tokens=100M", "name=run")
    until = time.monotonic() + 120
    while len(psutil.Process(process.pid).children()) < 2:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.poll() == 75 and "Go on: sae-dist resume outputs/run" in err, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_after_training_is_obeyed_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with (
        pytest.raises(Preempted, match="sae-dist resume outputs/run"),
        stopping_on_request(Path("outputs/run")),
    ):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_data_found_bad_midway_is_named_and_the_run_stays(tmp_path):
    rows_ND = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
    # Between the rows that are looked at before the start, in every chunk.
    rows_ND[1::256] = np.nan
    np.save(tmp_path / "acts.npy", rows_ND)
    words = [*QUICK, "activations=file", "activations.path=acts.npy", "name=run", "topology.shard=2"]
    done = warm(tmp_path, "train", *words)
    line = our_line(done)
    assert done.returncode == 1 and "NaN or inf in row" in line and "rank " in line
    assert (tmp_path / "outputs" / "run" / "config.yaml").exists()


def test_ranks_end_with_their_parent(tmp_path):
    process = Command(tmp_path, "train", *QUICK, *TWO, "train_tokens=100M", "name=run")
    metrics = tmp_path / "outputs" / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.1)
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert alive == []
