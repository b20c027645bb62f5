"""Warnings: what a reader should know before trusting a run's numbers, each in one line, with a remedy."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from sae_dist.config.kinds import SELECTED
from sae_dist.core.run_folder import DIVERGED
from sae_dist.core.text import quoted
from sae_dist.evaluation.quality.measure import DEAD_TOKENS
from sae_dist.evaluation.report.files import RunFiles

MANY_DEAD = 0.1
DENSE, MANY_DENSE = 0.1, 0.01
STALL, FEW_ROWS = 3.0, 10
EXCLUDED = 0.01
RATE = "perf/tokens_per_second"


@dataclass(frozen=True)
class Warning:
    """A finding, and what to do about it."""

    found: str
    advice: str


def warnings(run: RunFiles, rate_F: Tensor | None) -> list[Warning]:
    """Return all warnings that apply, those about the run as a whole first."""
    parts = (_unfinished(run), _not_finite(run), _dead(run), _dense(run, rate_F), _data(run), _speed(run))
    return [warning for part in parts for warning in part]


def _unfinished(run: RunFiles) -> Iterator[Warning]:
    step = run.rows[-1]["step"] if run.rows else 0
    if run.status == DIVERGED:
        reason = run.summary.get("reason", "its numbers broke")
        yield Warning(f"The run was given up: {reason}.", "Train again with a lower optim.lr.")
    elif not run.is_done:
        yield Warning(
            f"The run is {run.status} (step {step:,}).",
            f"Go on with: sae-dist resume {quoted(run.started)}",
        )


def _not_finite(run: RunFiles) -> Iterator[Warning]:
    names = [name for name in run.rows[-1] if name.startswith("loss/")] if run.rows else []
    broken = [row["step"] for row in run.rows if any(row.get(name, 0) is None for name in names)]
    if broken:
        yield Warning(
            f"The loss was not a finite number in {len(broken)} rows, first at step {broken[0]:,}.",
            "Lower optim.lr, or look at the activations there.",
        )


def _dead(run: RunFiles) -> Iterator[Warning]:
    share, of = run.summary.get("dead_fraction"), "silent on every held-out token"
    if share is None and run.rows:
        share, of = run.rows[-1].get("latents/dead_fraction"), "silent in training for sae.dead_after tokens"
    if share is not None and share > MANY_DEAD:
        yield Warning(
            f"{share:.0%} of the latents are dead ({of}).",
            f"Train longer, lower optim.lr or sae.num_latents, or {_against_dead(run.cfg.sae.kind)}.",
        )


def _against_dead(kind: str) -> str:
    """Return the key of a kind that revives latents, or kills fewer."""
    if kind in SELECTED:
        return "raise sae.aux_coefficient"
    return "raise sae.preact" if kind == "jumprelu" else "lower sae.sparsity"


def _dense(run: RunFiles, rate_F: Tensor | None) -> Iterator[Warning]:
    if rate_F is None:
        return
    sae = run.cfg.sae
    remedy = "lower sae.k" if sae.kind in SELECTED else "raise sae.sparsity"
    if sae.kind == "jumprelu" and sae.target_l0 is not None:
        remedy = f"lower sae.target_l0 or {remedy}"
    dense = int((rate_F > DENSE).sum())
    if dense > MANY_DENSE * len(rate_F):
        yield Warning(
            f"{dense:,} latents ({dense / len(rate_F):.1%}) fire on more than {DENSE:.0%} of the tokens.",
            f"Such latents seldom mean one thing: {remedy}, or train longer.",
        )


def _data(run: RunFiles) -> Iterator[Warning]:
    summary = run.summary
    seen = summary.get("eval_tokens")
    if run.is_done and summary.get("fvu") is None:
        reason = summary.get("fvu_reason") or summary.get("ce_reason") or f"status {run.status}"
        yield Warning(
            f"The evaluation was skipped: {reason}.",
            "Set eval.tokens in config.yaml, if it is 0 there, and run: sae-dist eval " + quoted(run.folder),
        )
    elif seen is not None and seen < DEAD_TOKENS:
        yield Warning(
            f"Only {seen:,} held-out tokens were read: rare latents look dead, and rates are rough.",
            f"Raise eval.tokens to {DEAD_TOKENS:,} or more, or give more text: sae-dist eval "
            f"{quoted(run.folder)} eval.tokens=500k eval.ce_tokens=64k",
        )
    excluded = summary.get("eval_excluded")
    if seen and excluded and excluded > EXCLUDED * seen:
        yield Warning(
            f"{excluded:,} held-out activations ({excluded / seen:.1%}) were left out for their norm.",
            "The dictionary never saw such rows; tokens.max_norm_multiple decides which.",
        )


def _speed(run: RunFiles) -> Iterator[Warning]:
    # The first row includes the wait for the first text, and compilation.
    known = [row for row in run.rows[1:] if row.get(RATE) is not None]
    usual = median(row[RATE] for row in known) if known else 0.0
    slow = [row["step"] for row in known if row[RATE] < usual / STALL]
    if len(known) >= FEW_ROWS and slow:
        yield Warning(
            f"Training stalled: {len(slow)} of {len(known)} rows of metrics, first at step {slow[0]:,}, "
            f"ran at less than a third of the usual speed.",
            "Look at what else ran then: checkpoints, reading of text, other work on the machine.",
        )
    if run.cfg.metrics.wandb == "off":
        yield Warning(
            "W&B was off: curves are in metrics.jsonl alone.", "metrics.wandb=auto keeps them there too."
        )
