"""How often a run is checkpointed, and what of that stays on the disk."""

from collections.abc import Iterator

from sae_dist.core.config import RunConfig
from sae_dist.core.counts import nearest


def checkpoint_problems(cfg: RunConfig) -> Iterator[str]:
    """Rules of `checkpoint.keep_every`."""
    every, kept = cfg.checkpoint.every, cfg.checkpoint.keep_every
    if kept is None:
        return
    if not every:
        fix = "give checkpoint.every too, or leave it out"
        yield f"checkpoint.keep_every={kept} is read with checkpoint.every only, and that is {every}; {fix}"
    elif kept % every:
        yield (
            f"checkpoint.keep_every={kept} is not a multiple of checkpoint.every={every}; "
            f"nearest: {nearest(kept, every)}"
        )


def most_checkpoints(cfg: RunConfig) -> int:
    """How many checkpoints lie on the disk at once: one more than are kept, while one is written."""
    every, kept = cfg.checkpoint.every, cfg.checkpoint.keep_every
    if not every:
        return 1
    for_good = cfg.train_tokens // kept if kept else 0
    return min(cfg.checkpoint.keep + 1 + for_good, cfg.train_tokens // every + 1)
