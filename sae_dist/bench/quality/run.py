"""The quality benchmark: for every contestant a sweep of the learning rate, then several seeds at the best.

folder/data/                                      see `data`
folder/trials/<latents>-k<k>/<contestant>/lr<lr>-seed<seed>/
    result.json, weights.safetensors, log.txt     a finished trial is not run again
folder/results.{json,csv,md}, results_<latents>_k<k>.png  written anew after every contestant
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sae_dist.bench.contestant import TrialFailed
from sae_dist.bench.quality.contestants import CONTESTANTS, QualityContestant, Trial, run_trial
from sae_dist.bench.quality.data import order_file, prepare_data
from sae_dist.bench.quality.evaluate import Weights, measure
from sae_dist.bench.quality.plan import Outcome, QualityPlan
from sae_dist.bench.quality.sweep import best_of, is_bracketed, sweep
from sae_dist.bench.quality.table import format_quality_tables, write_reports
from sae_dist.core.files import write_json
from sae_dist.core.text import print_line

NOT_FINITE = "not finite"


def run_quality(
    plan: QualityPlan, contestants: Mapping[str, QualityContestant] = CONTESTANTS
) -> list[Outcome]:
    """Run all trials that have no result yet; return the outcomes in the order of `plan.only`.

    Raises:
        SaeDistError: the folder or the source of data is wrong; a contestant that fails is an outcome.
    """
    prepare_data(plan)
    outcomes: list[Outcome] = []
    for latents, k in plan.shapes:
        for name in plan.only:
            outcomes.append(compete(plan, contestants[name], latents, k))
            write_reports(plan, outcomes)
    print(format_quality_tables(plan, outcomes))
    return outcomes


def compete(plan: QualityPlan, contestant: QualityContestant, latents: int, k: int) -> Outcome:
    """Find the best learning rate with one seed, or use the plan's; then run the other seeds at it."""
    outcome = Outcome(contestant.name, contestant.label, latents, k)
    try:
        attempt = partial(one_trial, plan, contestant, latents, k, outcome)
        if plan.lr:
            costs = {plan.lr: trial_cost(attempt(plan.lr, 0), None)}
        else:
            costs = sweep(
                contestant.begin_at(plan.steps, latents),
                lambda lr: trial_cost(attempt(lr, 0), contestant.dead_at_most),
                refine=plan.refine,
            )
        outcome.best_lr, outcome.bracketed = best_of(costs), is_bracketed(costs)
        if outcome.best_lr is None:
            outcome.error = "no learning rate counts"
            return outcome
        for seed in range(1, plan.seeds):
            attempt(outcome.best_lr, seed)
    except TrialFailed as error:
        outcome.error = str(error)
        print_line(f"{contestant.label}: {error}")
    return outcome


def trial_cost(result: dict[str, Any], dead_at_most: float | None) -> float:
    """Return the FVU, or infinity where the trial may not win."""
    if result["fvu"] is None or (dead_at_most is not None and result["dead"] > dead_at_most):
        return math.inf
    return result["fvu"]


def one_trial(
    plan: QualityPlan,
    contestant: QualityContestant,
    latents: int,
    k: int,
    outcome: Outcome,
    lr: float,
    seed: int,
) -> dict[str, Any]:
    """Train and measure, unless that has been done; the result joins the outcome.

    Raises:
        TrialFailed: see `contestants.run_trial`. Nothing is kept of it, so it is tried again next time.
    """
    folder = trial_folder(plan, contestant.name, latents, k, lr, seed)
    done = folder / "result.json"
    kept = done.is_file()
    if kept:
        result = json.loads(done.read_text(encoding="utf-8"))
    else:
        # Ours draws the rows by itself; the same ones in the same order.
        order = str(order_file(plan, seed).absolute()) if contestant.peer else ""
        trial = Trial(
            rows=str((plan.folder / "data" / "train.npy").absolute()),
            order=order,
            folder=str(folder.absolute()),
            num_latents=latents,
            k=k,
            batch=plan.batch,
            tokens=plan.steps * plan.batch,
            dead_after=plan.dead_after,
            lr=lr,
            seed=seed,
            device=plan.device,
            variant=contestant.variant,
        )
        result = {"contestant": contestant.name, "latents": latents, "k": k, "lr": lr, "seed": seed}
        result |= train_and_measure(contestant, plan, trial)
        write_json(done, result)
    outcome.trials.append(result)
    shown = "diverged" if result["fvu"] is None else f"FVU {result['fvu']:.4f}, {result['dead']:.1%} dead"
    print_line(
        f"{latents} latents, k {k}: {contestant.label}, lr {lr:g}, seed {seed}: {shown}, "
        f"{result['train_seconds'] or 0:.0f} s{', kept' if kept else ''}"
    )
    return result


def train_and_measure(contestant: QualityContestant, plan: QualityPlan, trial: Trial) -> dict[str, Any]:
    """Run a trial and measure its dictionary; that its loss is not finite is a result too."""
    try:
        trained = run_trial(contestant, plan, trial)
    except TrialFailed as error:
        if NOT_FINITE not in str(error):
            raise
        nothing = {"fvu": None, "dead": None, "l0": None, "test_rows": None, "train_seconds": None}
        return nothing | {"diverged": str(error)}
    rows = np.load(plan.folder / "data" / "test.npy", mmap_mode="r")
    return trained | measure(Weights.load(Path(trial.folder), plan.device), rows, plan.device)


def trial_folder(plan: QualityPlan, name: str, latents: int, k: int, lr: float, seed: int) -> Path:
    """Return the folder of a trial."""
    return plan.folder / plan.trials / f"{latents}-k{k}" / name / f"lr{lr:g}-seed{seed}"
