"""The loop. Every consumer rank walks the same lines, for one dictionary or for those of a grid in turn."""

import time
from collections.abc import Callable

from sae_dist.core.errors import NumericsError, Preempted
from sae_dist.optim.schedule import factor
from sae_dist.train.state import Run


def train(runs: list[Run], give_up: Callable[[Run, NumericsError], None] | None) -> list[Run]:
    """Train until the run's tokens are spent.

    Args:
        runs: dictionaries that stand at the same step of one stream.
        give_up: told of a dictionary of a grid whose numbers broke; the others go on. None: there is no grid.

    Returns:
        Those that came to the end.

    Raises:
        NumericsError: a non-finite loss or gradient, one step later; the update was skipped.
        CheckpointError: one could not be written; found at the next step, or at the next checkpoint.
        Preempted: the ranks agreed to stop; checkpoints were saved.
    """
    live = list(runs)

    def attempt(act: Callable[[Run], bool]) -> bool:
        """Act on each dictionary that is left; whether any of them answers yes."""
        answers = []
        for run in list(live):
            try:
                answers.append(act(run))
            except NumericsError as error:
                if give_up is None:
                    raise
                live.remove(run)
                give_up(run, error)
        return any(answers)

    while live and (step := live[0].progress.step) < live[0].steps:
        try:
            stop = attempt(advance)
        except NumericsError:
            wait(live)
            raise
        except Exception:
            for run in live:
                run.checkpoints.leave()
            raise
        for run in live:
            run.checkpoints.check()
            if stop or (step + 1) % run.save_every == 0 and step + 1 < run.steps:
                run.save()
        if stop:
            wait(live)
            folder = live[0].folder if give_up is None else live[0].folder.parent
            raise Preempted(
                f"stopped at step {step + 1} as asked; checkpoint saved. Go on: sae-dist resume {folder}"
            )
    attempt(lambda run: run.agreement.read())
    for run in live:
        run.save()
    wait(live)
    return live


def wait(runs: list[Run]) -> None:
    """Until no checkpoint is being written any more."""
    for run in runs:
        run.checkpoints.wait()


def advance(run: Run) -> bool:
    """One step; whether the ranks agreed to stop after it.

    Raises:
        NumericsError: see `train`.
    """
    cfg, progress, agreement, clock = run.cfg, run.progress, run.agreement, run.topology.clock
    run.meter.speed.begin(progress.step + 1)
    with clock("receive"):
        batch = run.next_batch()
    began = time.perf_counter()
    progress.tokens += cfg.batch
    terms = run.dictionary.loss(batch.x_BD, progress.tokens, agreement.any_dead)
    lr = run.lr * factor(progress.step, run.steps, cfg.optim.warmup or 0.0, cfg.optim.decay)
    norm, not_finite = run.optimizer.step(terms.total, lr)
    progress.step += 1

    with clock("wait"):
        stop = agreement.read()
    due = run.evaluator is not None and progress.step % run.evaluator.every == 0
    with clock("record"):
        agreement.post(progress.step, terms, not_finite)
        run.meter.record(run, batch, terms, norm, lr)
        if progress.step % cfg.metrics.every == 0 and not due:
            run.meter.flush(run)
    run.meter.speed.end(progress.step)
    run.seconds += time.perf_counter() - began
    if due:
        evaluate(run)
        run.meter.flush(run)
    return stop


def evaluate(run: Run) -> None:
    """Its numbers go into this step's row; its time is not training's."""
    assert run.evaluator is not None
    began = time.perf_counter()
    values = run.evaluator.evaluate(run)
    seconds = time.perf_counter() - began
    run.meter.add(values, seconds)
    run.progress.started += seconds
