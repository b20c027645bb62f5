"""Rules of `checkpoint`, and the space on the disk that checkpoints need."""

from collections.abc import Iterator

from sae_dist.config.counts import nearest
from sae_dist.config.run import Resolved, RunConfig, Single


def checkpoint_problems(cfg: RunConfig) -> Iterator[str]:
    """Yield broken rules of `checkpoint.keep_every`."""
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


def weight_bytes(cfg: Single, width: int) -> int:
    """Return the bytes of a dictionary's rows and encoder bias.

    Args:
        width: D, or D_in + D_out of a transcoder.
    """
    per_latent = (width if cfg.target_hook else 2 * width) + 1
    return per_latent * cfg.sae.num_latents * (8 if cfg.precision == "float64" else 4)


def checkpoint_bytes(cfg: Single, width: int) -> int:
    """Return the bytes of a checkpoint: weights, two moments of each, and when each latent fired last.

    Args:
        width: as in `weight_bytes`.
    """
    return 3 * weight_bytes(cfg, width) + 8 * cfg.sae.num_latents


def most_checkpoints(cfg: Resolved) -> int:
    """Count the checkpoints that are on the disk at once: one more than are kept, while one is written."""
    every, kept = cfg.checkpoint.every, cfg.checkpoint.keep_every
    if not every:
        return 1
    for_good = cfg.train_tokens // kept if kept else 0
    return min(cfg.checkpoint.keep + 1 + for_good, cfg.train_tokens // every + 1)
