"""Studies of our own defaults: one setting changed at a time, and the law of the learning rate.

Trials are those of the quality benchmark, on its data, so a study may share its folder and is resumed alike.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_dist.bench.quality.contestants import CONTESTANTS, QualityContestant
from sae_dist.bench.quality.data import prepare_data
from sae_dist.bench.quality.plan import Outcome, QualityPlan
from sae_dist.bench.quality.run import compete, run_quality, trial_cost
from sae_dist.bench.quality.sweep import rate
from sae_dist.core.files import write_json
from sae_dist.core.text import print_line

STUDIES = {
    "rule": {
        "default": "",
        "beta1_0": "optim.beta1=0",
        "row_lazy": "optim=row_adam optim.clip=1",
    },
    "settings": {
        "default": "",
        "encoder_scale_0.6": "sae.encoder_scale=0.6",
        "encoder_scale_1": "sae.encoder_scale=1",
        "encoder_lr_0.2": "optim.encoder_lr=0.2",
        "encoder_lr_0.45": "optim.encoder_lr=0.45",
        "bias_lr_1": "optim.bias_lr=1",
        "bias_lr_8": "optim.bias_lr=8",
        "clip_off": "optim.clip=null",
        "clip_0.03": "optim.clip=0.03",
        "beta2_0.99": "optim.beta2=0.99",
        "warmup_0.1": "optim.warmup=0.1",
        "decay_0.2": "optim.decay=0.2",
        "decay_0.8": "optim.decay=0.8",
        "aux_0.125": "sae.aux_coefficient=0.125",
        "aux_off": "sae.aux_k=0",
    },
}
"""What is tried, by study and name: words after `sae-dist train`."""


def variants(study: str) -> dict[str, QualityContestant]:
    """Return the contestants of a study: ours, each with one setting changed."""
    ours = CONTESTANTS["ours"]
    return {
        name: dataclasses.replace(ours, name=name, label=name, variant=words)
        for name, words in STUDIES[study].items()
    }


def run_defaults(plan: QualityPlan, study: str, only: Sequence[str] | None = None) -> list[Outcome]:
    """Run every variant of a study, or those named.

    Each gets a sweep of the learning rate of its own, then several seeds at the best; with `plan.lr`, all
    seeds run at that rate.

    Writes defaults_<study>.md and so on in the plan's folder. Resumable.
    """
    found = {name: each for name, each in variants(study).items() if only is None or name in only}
    plan = dataclasses.replace(plan, only=tuple(found), trials="defaults", report=f"defaults_{study}")
    return run_quality(plan, found)


@dataclass(frozen=True)
class Cell:
    """A length, batch and number of latents, and their best learning rate; None: not bracketed."""

    tokens: int
    batch: int
    latents: int
    lr: float | None

    @property
    def steps(self) -> int:
        return self.tokens // self.batch


def run_law(
    plan: QualityPlan, tokens: Sequence[int], batches: Sequence[int], latents: Sequence[int]
) -> dict[str, Any]:
    """Try learning rates in every cell and fit lr = a steps^b batch^c latents^d; write law.json.

    Cells vary one thing at a time around the first of each list. Resumable. The plan says k, seeds are not
    varied; its `tokens`, the most of all cells, and its `batch` make the data.
    """
    prepare_data(plan)
    k, ours, cells = plan.shapes[0][1], CONTESTANTS["ours"], []
    for T, B, F in star(tokens, batches, latents):
        own = dataclasses.replace(
            plan, tokens=T, batch=B, seeds=1, shapes=((F, k),), trials=f"law/tokens{T}-batch{B}"
        )
        outcome = compete(own, ours, F, k)
        costs = {trial["lr"]: trial_cost(trial, ours.dead_at_most) for trial in outcome.trials}
        cells.append(Cell(T, B, F, optimum(costs)))
        print_line(f"law: {T} tokens, batch {B}, {F} latents: best learning rate {cells[-1].lr}")
        found = {"k": k, "cells": [vars(cell) for cell in cells], "law": fit_law(cells)}
        write_json(plan.folder / "law.json", found)
    return found


def star(*values: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the first of every list, and every other value of one list with the first of the others."""
    centre = tuple(each[0] for each in values)
    arms = [(*centre[:n], value, *centre[n + 1 :]) for n, each in enumerate(values) for value in each[1:]]
    return [centre, *arms]


def optimum(costs: dict[float, float]) -> float | None:
    """Find the minimum of a parabola over log lr through the best try and its neighbours.

    Returns:
        None where a neighbour is missing; the best try where one does not count (too many dead).
    """
    rates = sorted(costs)
    best = min(range(len(rates)), key=lambda n: costs[rates[n]])
    if not 0 < best < len(rates) - 1 or math.isinf(costs[rates[best]]):
        return None
    near = [rates[n] for n in (best - 1, best, best + 1)]
    if any(math.isinf(costs[lr]) for lr in near):
        return rates[best]
    a, b, _ = np.polyfit(np.log(near), [costs[lr] for lr in near], 2)
    return rate(math.exp(-b / (2 * a)), 0, 1.0) if a > 0 else rates[best]


def fit_law(cells: list[Cell]) -> dict[str, float] | None:
    """Fit the law by least squares on logarithms; the exponent of what did not vary is 0.

    Returns:
        lr (at 1000 steps, batch 2048, 4096 latents), exponents of steps, batch and latents, and the largest
        ratio between a cell and the law; None with fewer than two cells.
    """
    known = [cell for cell in cells if cell.lr is not None]
    if len(known) < 2:
        return None
    features = np.log([[c.steps / 1000, c.batch / 2048, c.latents / 4096] for c in known])
    target = np.log([c.lr for c in known if c.lr is not None])
    varies = np.ptp(features, axis=0) > 0
    design = np.column_stack([np.ones(len(known)), features * varies])
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    worst = np.abs(design @ solution - target).max()
    names = ("steps", "batch", "latents")
    exponents = dict(zip(names, solution[1:].round(3).tolist(), strict=True))
    return {"lr": rate(math.exp(solution[0]), 0, 1.0), **exponents, "off_by": round(math.exp(worst), 3)}


def law_in_words(found: dict[str, Any]) -> str:
    """Format cells and law for the terminal."""
    lines = ["tokens      batch   latents  best lr"]
    for cell in found["cells"]:
        best = f"{cell['lr']:g}" if cell["lr"] else "not bracketed"
        lines.append(f"{cell['tokens']:<11} {cell['batch']:<7} {cell['latents']:<8} {best}")
    law = found["law"]
    if law:
        terms = (
            f"(steps/1000)^{law['steps']:g} (batch/2048)^{law['batch']:g} (latents/4096)^{law['latents']:g}"
        )
        lines.append(f"lr = {law['lr']:g} {terms}, off by at most a factor {law['off_by']:g}")
    return "\n".join(lines)
