"""How often a run is checkpointed, and what of that stays on the disk."""

from collections.abc import Iterator

from sae_dist.config.counts import nearest
from sae_dist.config.run import RunConfig


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


def weight_bytes(cfg: RunConfig, width: int) -> int:
    """Bytes of a dictionary's rows and encoder bias; `width`: D, or D_in + D_out of a transcoder."""
    assert cfg.sae.num_latents is not None
    per_latent = (width if cfg.target_hook else 2 * width) + 1
    return per_latent * cfg.sae.num_latents * (8 if cfg.precision == "float64" else 4)


def checkpoint_bytes(cfg: RunConfig, width: int) -> int:
    """Bytes of a checkpoint: weights, two moments of each, and when each latent fired last (64 bits)."""
    assert cfg.sae.num_latents is not None
    return 3 * weight_bytes(cfg, width) + 8 * cfg.sae.num_latents


def most_checkpoints(cfg: RunConfig) -> int:
    """How many checkpoints lie on the disk at once: one more than are kept, while one is written."""
    every, kept = cfg.checkpoint.every, cfg.checkpoint.keep_every
    if not every:
        return 1
    for_good = cfg.train_tokens // kept if kept else 0
    return min(cfg.checkpoint.keep + 1 + for_good, cfg.train_tokens // every + 1)
