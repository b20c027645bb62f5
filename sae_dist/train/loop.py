"""The training loop. Every consumer rank runs it, for one dictionary or for those of a grid in turn."""

import time
from collections.abc import Callable

from sae_dist.core.errors import NumericsError, Preempted
from sae_dist.core.text import quoted
from sae_dist.optim.schedule import factor
from sae_dist.train.evaluator import Evaluator
from sae_dist.train.state import Run
from sae_dist.train.summary import give_up


def train(runs: list[Run], *, in_grid: bool) -> list[Run]:
    """Train until the run's tokens are spent.

    Args:
        runs: dictionaries that stand at the same step of one stream.
        in_grid: a dictionary whose numbers break is given up, and the others go on.

    Returns:
        Those that came to the end.

    Raises:
        NumericsError: a non-finite loss or gradient, one step later; the update was skipped.
        CheckpointError: one could not be written; found at the next step, or at the next checkpoint.
        Preempted: the ranks agreed to stop; checkpoints were saved.
    """
    live = list(runs)
    while live and (step := live[0].progress.step) < live[0].steps:
        try:
            stop = for_each(live, advance, in_grid)
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
            folder = live[0].folder.parent if in_grid else live[0].folder
            raise Preempted(
                f"stopped at step {step + 1} as asked; checkpoint saved. Go on: "
                f"sae-dist resume {quoted(folder)}"
            )
    for_each(live, lambda run: run.agreement.read(), in_grid)
    for run in live:
        run.save()
    wait(live)
    return live


def for_each(live: list[Run], act: Callable[[Run], bool], in_grid: bool) -> bool:
    """Act on every dictionary, and return whether any act returned true.

    In a grid a dictionary whose numbers break is given up, and leaves `live`.

    Raises:
        NumericsError: there is no grid, and the numbers broke.
    """
    answers = []
    for run in list(live):
        try:
            answers.append(act(run))
        except NumericsError as error:
            if not in_grid:
                raise
            live.remove(run)
            give_up(run, error)
    return any(answers)


def wait(runs: list[Run]) -> None:
    """Wait until no checkpoint is being written any more."""
    for run in runs:
        run.checkpoints.wait()


def advance(run: Run) -> bool:
    """Take one step, and return whether the ranks agreed to stop after it.

    Raises:
        NumericsError: see `train`.
    """
    cfg, progress, agreement, clock = run.cfg, run.progress, run.agreement, run.topology.clock
    run.meter.speed.begin(progress.step + 1)
    with clock("receive"):
        batch = run.next_batch()
    began = time.perf_counter()
    progress.tokens += cfg.batch
    terms = run.dictionary.loss(batch.x_BD, progress.tokens, agreement.any_dead, agreement.most_dead)
    lr = run.lr * factor(progress.step, run.steps, cfg.optim.warmup, cfg.optim.decay)
    norm, not_finite = run.optimizer.step(terms.total, lr)
    progress.step += 1

    with clock("wait"):
        stop = agreement.read()
    evaluator = run.evaluator
    due = evaluator is not None and progress.step % evaluator.every == 0
    with clock("record"):
        agreement.post(progress.step, terms, not_finite)
        run.meter.record(run, batch, terms, norm, lr)
        if progress.step % cfg.metrics.every == 0 and not due:
            run.meter.flush(run)
    run.meter.speed.end(progress.step)
    run.seconds += time.perf_counter() - began
    if evaluator is not None and due:
        evaluate(run, evaluator)
        run.meter.flush(run)
    return stop


def evaluate(run: Run, evaluator: Evaluator) -> None:
    """Add the numbers of an evaluation to this step's row; its time does not count as training."""
    began = time.perf_counter()
    values = evaluator.evaluate(run)
    seconds = time.perf_counter() - began
    run.meter.add(values, seconds)
    run.progress.started += seconds
