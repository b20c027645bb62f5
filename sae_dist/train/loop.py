"""The loop. Every consumer rank walks the same lines."""

from sae_dist.optim.schedule import factor
from sae_dist.train.state import Run


def train(run: Run) -> None:
    """Train until the run's tokens are spent.

    Raises:
        NumericsError: a non-finite loss or gradient, one step later; the update was skipped.
        Preempted: the ranks agreed to stop; a checkpoint was saved.
    """
    cfg, progress, agreement = run.cfg, run.progress, run.agreement
    while progress.step < run.steps:
        batch = run.next_batch()
        progress.tokens += cfg.batch
        terms = run.dictionary.loss(batch.x_BD, progress.tokens, agreement.any_dead)
        lr = run.lr * factor(progress.step, run.steps, cfg.optim.warmup or 0.0, cfg.optim.decay)
        norm, not_finite = run.optimizer.step(terms.total, lr)
        progress.step += 1

        stop = agreement.read()
        agreement.post(progress.step, terms, not_finite)
        run.meter.record(run, batch, terms, norm, lr)
        if progress.step % cfg.metrics.every == 0:
            run.meter.flush(run)
        if stop:
            run.preempt()
        if progress.step % run.save_every == 0 and progress.step < run.steps:
            run.save()
    agreement.read()
    run.save()
