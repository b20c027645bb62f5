"""Studies of our own defaults around their trials: variants, resuming, the fit of the law."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from sae_dist.bench.command import bench
from sae_dist.bench.quality import run as quality
from sae_dist.bench.quality import studies
from sae_dist.bench.quality.plan import QualityPlan
from sae_dist.bench.quality.studies import Cell, fit_law, optimum, star
from sae_dist.core.errors import ConfigError
from sae_dist.launch.compose import compose_config


@pytest.fixture
def plan(tmp_path) -> QualityPlan:
    return QualityPlan(tmp_path, tokens=100_000, shapes=((64, 4),), seeds=2, batch=256)


@pytest.mark.parametrize("study", studies.STUDIES)
def test_every_variant_is_a_config(study):
    for words in studies.STUDIES[study].values():
        compose_config(["activations=file", "activations.path=x.npy", "sae.num_latents=64", *words.split()])


def test_a_study_runs_every_variant_and_reports(plan, monkeypatch):
    """Trials stand in for training: FVU is best at the default's learning rate, and lower with beta1=0."""
    jobs = []

    def trial(contestant, plan, job):
        Path(job.folder).mkdir(parents=True)
        jobs.append(job)
        best = studies.CONTESTANTS["ours"].begin_at(plan.steps, job.num_latents)
        fvu = 0.1 + math.log(job.lr / best) ** 2 - 0.01 * (job.variant == "optim.beta1=0") + job.seed * 1e-4
        words = {"version": "1", "torch": "2", "threads": 1, "settings": job.variant or "defaults"}
        return {"fvu": fvu, "dead": 0.01, "l0": 4.0, "test_rows": 10, "train_seconds": 1.0} | words

    monkeypatch.setattr(quality, "prepare_data", lambda plan: None)
    monkeypatch.setattr(quality, "train_and_measure", trial)
    outcomes = studies.run_defaults(plan, "rule")
    assert [each.contestant for each in outcomes] == list(studies.STUDIES["rule"])
    assert all(each.bracketed and len(each.at_best) == 2 for each in outcomes)
    assert "beta1_0" in (plan.folder / "defaults_rule.md").read_text()
    count = len(jobs)
    studies.run_defaults(plan, "rule")
    assert len(jobs) == count, "finished trials are kept"
    assert {job.variant for job in jobs} == {"", "optim.beta1=0", "optim=row_adam optim.clip=1"}


def test_one_rate_for_all_needs_no_sweep(plan, monkeypatch):
    rates = []

    def trial(contestant, plan, job):
        Path(job.folder).mkdir(parents=True)
        rates.append((contestant.name, job.lr, job.seed))
        words = {"version": "1", "torch": "2", "threads": 1, "settings": job.variant or "defaults"}
        return {"fvu": 0.1, "dead": 0.3, "l0": 4.0, "test_rows": 10, "train_seconds": 1.0} | words

    monkeypatch.setattr(quality, "prepare_data", lambda plan: None)
    monkeypatch.setattr(quality, "train_and_measure", trial)
    studies.run_defaults(dataclasses.replace(plan, lr=0.007), "settings", ["default", "clip_off"])
    assert rates == [(name, 0.007, seed) for name in ("default", "clip_off") for seed in (0, 1)]
    report = (plan.folder / "defaults_settings.md").read_text()
    assert "with the learning rate 0.007" in report and "at the edge" not in report


def test_the_law_is_found_again(plan, monkeypatch):
    """Costs with their optimum on a known law: the fit gives it back, cell by cell and resumed."""

    def best(tokens, batch, latents):
        return 0.02 * (tokens / batch / 1000) ** -0.25 * (batch / 2048) ** 0.5 * (latents / 4096) ** -0.5

    def trial(contestant, plan, job):
        Path(job.folder).mkdir(parents=True)
        fvu = 0.1 + math.log(job.lr / best(job.tokens, job.batch, job.num_latents)) ** 2
        return {"fvu": fvu, "dead": 0.0, "train_seconds": 1.0}

    monkeypatch.setattr(studies, "prepare_data", lambda plan: None)
    monkeypatch.setattr(quality, "train_and_measure", trial)
    lists = ([204_800, 51_200, 819_200], [2048, 1024], [4096, 16384])
    found = studies.run_law(plan, *lists)
    law = found["law"]
    assert law["lr"] == pytest.approx(0.02, rel=0.01) and law["off_by"] < 1.01
    assert [law[key] for key in ("steps", "batch", "latents")] == pytest.approx([-0.25, 0.5, -0.5], abs=0.01)
    monkeypatch.setattr(quality, "train_and_measure", lambda *_: pytest.fail("trained again"))
    assert studies.run_law(plan, *lists) == found == json.loads((plan.folder / "law.json").read_text())
    assert "off by" in studies.law_in_words(found)


def test_star_varies_one_thing_at_a_time():
    assert star([1, 2], [3], [4, 5]) == [(1, 3, 4), (2, 3, 4), (1, 3, 5)]


def test_optimum():
    costs = {lr: (np.log(lr) - np.log(0.013)) ** 2 for lr in (0.005, 0.01, 0.02, 0.04)}
    assert optimum(costs) == pytest.approx(0.013)
    assert optimum({0.01: 1.0, 0.02: 0.5}) is None, "no neighbour above"
    assert optimum({0.01: 1.0, 0.02: 0.5, 0.04: math.inf}) == 0.02
    assert optimum({0.01: math.inf, 0.02: math.inf, 0.04: math.inf}) is None


def test_too_few_cells_give_no_law():
    cell = Cell(1000, 10, 64, 0.1)
    assert fit_law([cell, dataclasses.replace(cell, latents=128, lr=None)]) is None
    assert "not bracketed" in studies.law_in_words({"cells": [vars(cell) | {"lr": None}], "law": None})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("defaults --study all", "--study all"),
        ("defaults --only clip_of", "--only clip_of"),
        ("defaults --lr -1", "--lr=-1"),
        ("law --tokens 100", "--tokens"),
        ("law --k 9999", "--k 9999"),
    ],
)
def test_wrong_words_are_named(words, named, tmp_path):
    with pytest.raises(ConfigError, match=named):
        bench([*words.split(), "--folder", str(tmp_path / "bench")])
    assert not list(tmp_path.iterdir())
