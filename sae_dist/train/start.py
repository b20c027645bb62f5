"""Starts training with the first batch, or at a checkpoint."""

from pathlib import Path
from typing import Any

import torch

from sae_dist.checkpoint.read import complete, none_left, passed_over
from sae_dist.core.errors import CheckpointError, ConfigError
from sae_dist.core.run_folder import CHECKPOINTS
from sae_dist.core.text import print_line
from sae_dist.shuffle.scale import estimate, mean_share
from sae_dist.train.state import Progress, Run
from sae_dist.train.warm import begin_with

NO_VARIANCE = 1e-12
"""A variance below this share of the squared mean is rounding."""


def start(runs: list[Run]) -> None:
    """Begin, or with `resume=auto` go on from the newest checkpoint that all of these dictionaries have.

    Dictionaries of a grid save one after the other. If a run is killed in between, those that had saved go
    back one checkpoint with the others, and lose the newer one. A checkpoint whose files are damaged is named
    on stderr, and the one before it is used.

    Raises:
        CheckpointError: they have no step in common, as may happen with other groups of consumers; or every
            checkpoint is damaged.
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
    sound = newest_sound(runs, common)
    for run in runs:
        there = run.folder / CHECKPOINTS / sound if sound else None
        run.checkpoints.forget_after(there)
        if there:
            resume(run, there)
        else:
            begin(run)


def newest_sound(runs: list[Run], names: set[str]) -> str | None:
    """Return the newest of these checkpoints whose files are sound for every dictionary, if any.

    Raises:
        CheckpointError: all of them are damaged.
    """
    problems: list[str] = []
    for name in sorted(names, key=lambda name: int(name[5:]), reverse=True):
        damage = [(run.folder, run.checkpoints.damage(run.folder / CHECKPOINTS / name)) for run in runs]
        found = [(folder, problem) for folder, problem in damage if problem]
        if not found:
            return name
        problems += [problem for _, problem in found]
        for folder, problem in found:
            if runs[0].topology.leads:
                print_line(passed_over(folder, problem))
    if problems:
        raise CheckpointError(none_left(runs[0].folder, problems))
    return None


def begin(run: Run) -> None:
    """Estimate shift, scales, mean and variance from the first batch, which is trained on too.

    With `sae.start` the weights are those of a finished dictionary, brought to this run's scale.
    """
    raw, _ = run.shuffle.draw(0)
    master = run.to_master(raw)
    scaling, consumers = run.cfg.activations.scaling, run.topology.consumers
    found = [estimate(scaling, part, consumers) for part in master.split(list(run.widths), dim=1)]
    run.scales = [scale for _, scale in found]
    run.shift_C.copy_(torch.cat([shift_D for shift_D, _ in found]))
    if scaling != "centred":
        run.mean_shares = [mean_share(part, consumers) for part in master.split(list(run.widths), dim=1)]
    run.dictionary.start_from(run.normalise(raw))
    check_variance(run)
    if run.cfg.sae.start is not None:
        begin_with(run, run.cfg.sae.start)


def check_variance(run: Run) -> None:
    """Check that the rows of the first batch differ: the loss and FVU are divided by their variance.

    Raises:
        ConfigError: they are all alike.
    """
    dictionary = run.dictionary
    if float(dictionary.variance) <= NO_VARIANCE * float(dictionary.mean_E.square().sum()):
        raise ConfigError(
            f"the {run.cfg.batch} activations of the first batch are all alike, so that loss and FVU, which "
            "are divided by their variance, have no value; look at the hook, the text or the file"
        )


def resume(run: Run, checkpoint: Path) -> None:
    """Continue from a checkpoint, on whatever topology it was written."""
    scalars: dict[str, Any] = run.checkpoints.load(checkpoint, run.tensors())
    run.optimizer.updates = scalars["updates"]
    run.scales, run.wandb_id = scalars["scales"], scalars["wandb_id"]
    run.meter.speed.before = scalars["spent"]
    run.meter.kept = scalars.get("unwritten", [])
    run.progress = Progress(scalars["step"], scalars["tokens"], tokens_at_start=scalars["tokens"])
    known = scalars.get("most_dead"), scalars.get("shards")
    run.agreement.restore(scalars["any_dead"], scalars["pending"], *known)
    run.shuffle.restore(scalars["lanes"])
