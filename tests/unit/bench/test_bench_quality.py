"""The benchmark around its trials: data, resuming, the evaluator, reports, words."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sae_dist.bench import environments, venvs
from sae_dist.bench.contestant import TrialFailed, interpreter
from sae_dist.bench.quality import run as quality
from sae_dist.bench.quality.arguments import read_plan
from sae_dist.bench.quality.data import order_file, prepare_data, rows_needed, run_order
from sae_dist.bench.quality.evaluate import Weights, measure, weights_of_export
from sae_dist.bench.quality.plan import CHUNK_ROWS, QualityPlan
from sae_dist.bench.quality.table import quality_markdown
from sae_dist.bench.scaling import run_scaling
from sae_dist.config.run import RunConfig
from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.evaluation.quality.measure import Evaluation, evaluate
from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import export_saelens
from sae_dist.kernels.reference import encode_topk

D, F, K = 16, 64, 4


@pytest.fixture
def plan(tmp_path) -> QualityPlan:
    return QualityPlan(tmp_path / "bench", tokens=4096, shapes=((F, K),), seeds=3, batch=256, test_rows=1000)


def fake_rows(held_out: bool):
    draw = torch.Generator().manual_seed(int(held_out))
    while True:
        yield 3.0 + torch.randn(512, D, generator=draw)


def random_sae(seed: int = 0) -> ExportedSae:
    draw = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(F, D, generator=draw), dim=1)
    b_enc = torch.randn(F, generator=draw)
    b_enc[:5] = -1e6
    b_dec = torch.randn(D, generator=draw)
    return ExportedSae(kind="topk", W_enc_FD=0.7 * W, b_enc_F=b_enc, W_dec_FE=W, b_dec_E=b_dec, k=K)


def weights_of(sae: ExportedSae, scale: float = 1.0) -> Weights:
    return Weights(sae.W_enc_FD, sae.b_enc_F, sae.W_dec_FE, sae.b_dec_E, K, scale=scale)


def test_data_are_scaled_shuffled_and_made_once(plan):
    folder = prepare_data(plan, fake_rows)
    train, test = (np.load(folder / f"{name}.npy") for name in ("train", "test"))
    used = train[np.abs(train).sum(1) > 0]
    assert np.linalg.norm(used, axis=1).mean() == pytest.approx(D**0.5, rel=1e-4)
    assert test.shape == (1000, D) and len(train) == rows_needed(plan.tokens, plan.batch)
    order = np.load(order_file(plan, 0))
    assert (np.abs(train[order]).sum(1) > 0).all(), "no row of those held out by our reader"
    prepare_data(plan, lambda held_out: pytest.fail("harvested again"))


@pytest.mark.parametrize("tokens", [4096, 40_000])
def test_an_order_has_every_row_at_most_once_and_depends_on_the_seed(plan, tokens):
    plan = dataclasses.replace(plan, tokens=tokens)
    N = rows_needed(plan.tokens, plan.batch)
    first, again, other = (run_order(N, plan, seed) for seed in (0, 0, 1))
    assert len(np.unique(first)) == len(first) == plan.steps * plan.batch and first.max() < N
    assert (first == again).all() and (first != other).any()
    assert N % CHUNK_ROWS == 0


def test_too_little_text_is_one_line(plan):
    with pytest.raises(ConfigError, match="test.npy, and 1,000 are needed"):
        prepare_data(plan, lambda held_out: iter([torch.ones(10, D)]))


def test_another_benchmark_or_something_else_in_the_folder(plan, tmp_path):
    prepare_data(plan, fake_rows)
    with pytest.raises(ConfigError, match="tokens=4096, and this one has tokens=8192"):
        prepare_data(dataclasses.replace(plan, tokens=8192), fake_rows)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no benchmark"):
        prepare_data(dataclasses.replace(plan, folder=tmp_path / "mine"), fake_rows)


def test_the_evaluator_agrees_with_evaluation(tmp_path):
    sae = random_sae()
    rows = next(fake_rows(True)) + torch.randn(512, D)
    cfg = RunConfig()
    cfg.eval.tokens, cfg.eval.baselines = len(rows), False
    part = Evaluation(cfg, sae, encode_topk)
    evaluate([part], iter(rows.split(100)), len(rows))
    expected = part.numbers()
    export_saelens(tmp_path, sae)
    found = measure(weights_of_export(tmp_path), rows, "cpu")
    assert found["fvu"] == pytest.approx(expected["fvu"], rel=1e-5)
    assert found["l0"] == pytest.approx(expected["l0"], rel=1e-6)
    assert found["dead"] == expected["density"]["silent"] / F >= 5 / F
    assert found["test_rows"] == 512


def test_the_scale_of_the_input_is_undone():
    sae = random_sae()
    rows = next(fake_rows(True))
    plain = weights_of(sae)
    scaled = weights_of(sae, scale=0.1)
    assert measure(scaled, 10 * rows, "cpu")["fvu"] == pytest.approx(measure(plain, rows, "cpu")["fvu"])
    assert measure(scaled, rows, "cpu")["fvu"] != pytest.approx(measure(plain, rows, "cpu")["fvu"])


def test_weights_that_are_not_finite_have_no_fvu():
    sae = random_sae()
    sae.W_dec_FE.fill_(math.nan)
    assert measure(weights_of(sae), next(fake_rows(True)), "cpu")["fvu"] is None


class FakeTrials:
    """Stands in for the processes: FVU by learning rate, a peer that is missing, one that diverges."""

    def __init__(self):
        self.calls: list[tuple[str, float, int]] = []
        self.interrupt_at: int | None = None

    def run(self, contestant, plan, job):
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        self.calls.append((contestant.name, job.lr, job.seed))
        if contestant.name == "saelens":
            raise TrialFailed("ModuleNotFoundError: No module named 'sae_lens'")
        if contestant.name == "dictionary_learning" and job.lr > 5e-3:
            Path(job.folder).mkdir(parents=True)
            raise TrialFailed("the loss is not finite")
        Path(job.folder).mkdir(parents=True)
        self.fvu = 0.08 + 0.01 * abs(math.log2(job.lr / 4e-3)) + 0.001 * job.seed
        self.dead = 0.25 if job.lr > 5e-3 else 0.01
        return {"train_seconds": 1.0, "version": "1", "torch": "2", "threads": 1, "settings": "its own"}

    def measure(self, weights, rows, device):
        return {"fvu": self.fvu, "dead": self.dead, "l0": 4.0, "test_rows": len(rows)}


@pytest.fixture
def trials(plan, monkeypatch) -> FakeTrials:
    prepare_data(plan, fake_rows)
    fake = FakeTrials()
    monkeypatch.setattr(quality, "run_trial", fake.run)
    monkeypatch.setattr(quality, "measure", fake.measure)
    monkeypatch.setattr(Weights, "load", lambda folder, device: None)
    return fake


def test_results_and_resuming(plan, trials, capsys):
    outcomes = {each.contestant: each for each in quality.run_quality(plan)}
    first = len(trials.calls)
    ours = outcomes["ours"]
    assert ours.best_lr is not None and len(ours.at_best) == plan.seeds and ours.bracketed
    assert ours.best_lr <= 5e-3 < max(trial["lr"] for trial in ours.trials), "more were dead above"
    assert outcomes["saelens"].error == "ModuleNotFoundError: No module named 'sae_lens'"
    assert len(outcomes["dictionary_learning"].at_best) == plan.seeds

    table = capsys.readouterr().out
    assert "sae_dist" in table and "No module named 'sae_lens'" in table and "1,000 held-out rows" in table
    with open(plan.folder / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(each.trials) for each in outcomes.values())
    saved = json.loads((plan.folder / "results.json").read_text(encoding="utf-8"))
    assert saved["outcomes"][0]["best_lr"] == ours.best_lr
    assert (plan.folder / f"results_{F}_k{K}.png").read_bytes().startswith(b"\x89PNG")

    trials.calls.clear()
    again = {each.contestant: each for each in quality.run_quality(plan)}
    assert {name for name, _, _ in trials.calls} == {"saelens"}, "only what failed is tried again"
    assert again["ours"] == ours and first > 20


def test_an_interrupted_benchmark_goes_on_where_it_was(plan, trials):
    plan = dataclasses.replace(plan, only=("sparsify",))
    trials.interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        quality.run_quality(plan)
    trials.interrupt_at = None
    (outcome,) = quality.run_quality(plan)
    assert len(trials.calls) == len(set(trials.calls)) == len(outcome.trials), "nothing is done twice"
    assert len(outcome.at_best) == plan.seeds and outcome.error is None


def test_the_markdown_table(plan, trials):
    outcomes = quality.run_quality(plan)
    text = quality_markdown(plan, outcomes)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(outcomes)
    shown = next(row for row in rows if "sparsify (adam)" in row)
    assert "0.0810 ± 0.0010" in shown and "1.0 ± 0.0 %" in shown


def test_words_become_a_plan(tmp_path):
    plan = read_plan(["--latents", "64,128", "--k", "4,8", "--tokens", "1M", "--device", "cpu"])
    assert plan.shapes == ((64, 4), (64, 8), (128, 4), (128, 8)) and plan.tokens == 1_000_000
    assert read_plan(["--small", "--device", "cpu"]).tokens < read_plan(["--full", "--device", "cpu"]).tokens


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--only mine", "contestants are ours"),
        ("--tokens few", "500k, 2M"),
        ("--tokens 5", "at least 40960"),
        ("--k 8192", "smaller k"),
        ("--seeds 0", "greater than 0"),
        ("--small --full", "not allowed"),
        ("--peer-python x", "NAME=/path"),
        ("--peer-python x=/bin/sh", "peers are"),
        ("--peer-python saelens=/nowhere", "does not exist"),
        ("--what", "unrecognized"),
    ],
)
def test_wrong_words(words, says):
    with pytest.raises(ConfigError, match=says):
        read_plan([*words.split(), "--device", "cpu"])


def test_scaling_times_every_width(tmp_path):
    table = run_scaling(tmp_path, (64, 128), width=D, k=K, batch=96, device="cpu")
    rows = (tmp_path / "scaling.csv").read_text().splitlines()
    assert len(rows) == 3 and [row.split(",")[0] for row in rows[1:]] == ["64", "128"]
    assert all(float(row.split(",")[2]) > 0 for row in rows[1:]) and "latents^" in table


def test_environments_are_made_once_with_one_torch(tmp_path, monkeypatch):
    calls: list[list[str]] = []

    def pip(words, **_):
        calls.append(words[words.index("pip") + 2 :])
        return SimpleNamespace(returncode=int("eai-sparsify==1.3.3" in words))

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(venvs.venv, "create", lambda folder, **_: folder.mkdir(parents=True))
    monkeypatch.setattr(venvs.subprocess, "run", pip)
    for _ in range(2):
        (line,) = venvs.make_environments(tmp_path, ["saelens"], "torch==2.13.0")
    assert line.endswith("peers/saelens/bin/python") and len(calls) == 3
    assert all("torch==2.13.0" in words for words in calls if words[0] == "install")
    with pytest.raises(SaeDistError, match="sparsify: pip install torch==2.13.0 eai-sparsify==1.3.3 failed"):
        venvs.make_environments(tmp_path, ["sparsify"], "torch==2.13.0")


def test_an_interpreter_in_somebody_elses_folder_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    python = tmp_path / "theirs" / "peers" / "saelens" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\ntouch ran\n")
    (python.parents[1] / environments.READY).write_text("sae-lens==6.54.12\n" + "0" * 32 + "\n")
    with pytest.raises(SaeDistError, match="was not made by you, and would run as you; make it with"):
        interpreter("saelens", tmp_path / "theirs", {})
    assert interpreter("saelens", tmp_path / "theirs", {"saelens": str(python)}) == str(python)
    environments.keep(python.parents[1], ["sae-lens==6.54.12"])
    assert interpreter("saelens", tmp_path / "theirs", {}) == str(python)


def test_an_environment_is_not_made_behind_a_link(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs" / "peers").mkdir(parents=True)
    (tmp_path / "theirs" / "peers" / "saelens").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="peers/saelens is a link to .*mine; remove it"):
        venvs.make_environments(tmp_path / "theirs", ["saelens"], "torch==2.13.0")
