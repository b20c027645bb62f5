"""Where training starts: with the first batch, or at a checkpoint."""

from pathlib import Path
from typing import Any

import torch

from sae_dist.checkpoint.store import CHECKPOINTS, complete
from sae_dist.core.errors import CheckpointError
from sae_dist.shuffle.scale import estimate
from sae_dist.train.state import Progress, Run


def start(runs: list[Run]) -> None:
    """Begin, or with `resume=auto` go on where all of these dictionaries stood last.

    Dictionaries of a grid save one after the other: one that was killed in between goes back a checkpoint
    with all others, and loses the newer one.

    Raises:
        CheckpointError: they stand at different steps, as those of several groups of consumers may.
    """
    found = [complete(run.folder / CHECKPOINTS) if run.cfg.resume == "auto" else [] for run in runs]
    common = set.intersection(*({path.name for path in paths} for paths in found))
    if not common and max(map(len, found)) > 1:
        last = [paths[-1].name if paths else "none" for paths in found]
        stands = [f"{run.folder.name}: {name}" for run, name in zip(runs, last, strict=True)]
        raise CheckpointError(
            f"the dictionaries have no checkpoint of one step ({', '.join(stands)}); continue with the "
            "topology.groups that they were trained with"
        )
    for run, paths in zip(runs, found, strict=True):
        there = [path for path in paths if path.name in common]
        run.checkpoints.forget_after(there[-1] if there else None)
        if there:
            resume(run, there[-1])
        else:
            begin(run)


def begin(run: Run) -> None:
    """Estimate shift, scales, mean and variance from the first batch, which is then trained on."""
    raw, _ = run.shuffle.draw(0)
    master = run.to_master(raw)
    scaling, consumers = run.cfg.activations.scaling, run.topology.consumers
    found = [estimate(scaling, part, consumers) for part in master.split(list(run.widths), dim=1)]
    run.scales = [scale for _, scale in found]
    run.shift_C.copy_(torch.cat([shift_D for shift_D, _ in found]))
    run.dictionary.start_from(run.normalise(raw))


def resume(run: Run, checkpoint: Path) -> None:
    """Continue from a checkpoint, on whatever topology it was written."""
    scalars: dict[str, Any] = run.checkpoints.load(checkpoint, run.tensors())
    run.optimizer.updates = scalars["updates"]
    run.scales, run.wandb_id = scalars["scales"], scalars["wandb_id"]
    run.progress = Progress(scalars["step"], scalars["tokens"], tokens_at_start=scalars["tokens"])
    run.agreement.restore(scalars["any_dead"], scalars["pending"])
    run.shuffle.restore(scalars["lanes"])
