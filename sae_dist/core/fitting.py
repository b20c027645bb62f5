"""What would fit a memory that a run was too large for, by the arithmetic of `core.memory`."""

import copy
from collections.abc import Iterator

from sae_dist.core.config import RunConfig
from sae_dist.core.grid import members
from sae_dist.core.kinds import SELECTED
from sae_dist.core.memory import consumer_memory

USABLE = 0.8
"""Of the memory: a step needs more for a while."""
MOST_SHARDS = 1024


def held_bytes(cfg: RunConfig, columns: int, target: int) -> int:
    """Bytes of a consumer between two steps: all dictionaries of a grid, and the activations that wait, once.

    Args:
        columns, target: as in `consumer_memory`, of the widest dictionary.
    """
    each = [consumer_memory(member, columns, target) for member in members(cfg)]
    dictionaries = sum(one.dictionary for one in each)
    if cfg.optim.kind == "offload" and cfg.device != "cpu":
        dictionaries -= sum(one.moments for one in each)
    return dictionaries + max(one.rows for one in each)


def what_would_fit(cfg: RunConfig, columns: int, target: int, room: int) -> list[str]:
    """Overrides, each of which alone brings a consumer below a usable share of `room` bytes."""
    found = {}
    for key, value, changed in _changes(cfg):
        if key not in found and held_bytes(changed, columns, target) <= USABLE * room:
            found[key] = f"{key}={value}"
    return list(found.values())


def _changes(cfg: RunConfig) -> Iterator[tuple[str, object, RunConfig]]:
    """Smaller runs, of each kind the largest first."""
    shard = 2 * cfg.topology.shard
    # On a CPU more ranks would share the same memory.
    while shard <= MOST_SHARDS and cfg.device != "cpu":
        changed = copy.deepcopy(cfg)
        changed.topology.shard = shard
        ranks = shard * cfg.topology.dp
        latents = [member.sae.num_latents or 0 for member in members(cfg)]
        if not any(each % ranks for each in (*latents, cfg.batch, cfg.shuffle.lanes)):
            yield "topology.shard", shard, changed
        shard *= 2
    if cfg.optim.kind == "adam":
        for kind in ("row_adam", "offload"):
            possible = cfg.sae.kind in SELECTED if kind == "row_adam" else cfg.device != "cpu"
            if possible and cfg.precision != "float64":
                changed = copy.deepcopy(cfg)
                changed.optim.kind = kind
                yield "optim", kind, changed
    if cfg.grid.num_latents is None and cfg.sae.num_latents is not None:
        step = cfg.topology.shard * cfg.topology.dp
        latents_now = cfg.sae.num_latents
        while (latents_now := latents_now // 2 // step * step) >= max(step, cfg.sae.k):
            changed = copy.deepcopy(cfg)
            changed.sae.num_latents = latents_now
            yield "sae.num_latents", latents_now, changed
