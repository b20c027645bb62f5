"""Rules of what is shared out evenly: lanes, rows of a step and latents, to the consumers of a group.

A misfit is reported with all others, and with one line of overrides that works.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sae_dist.config.run import RunConfig

DEFAULT_LANES = 48
MOST_LANES_EACH = 8
MOST_RANKS = 1024


def default_lanes(cfg: RunConfig) -> int:
    """Return the lanes of a run that leaves `shuffle.lanes` open.

    They are 48 where these can be shared out. Else they are a multiple of 48, so that a run can continue on
    fewer consumers, unless a consumer had more than MOST_LANES_EACH of them; then the next multiple of the
    consumers. Every rank that computes chunks has a lane.
    """
    consumers = consumers_of(cfg)
    lanes = math.lcm(DEFAULT_LANES, consumers)
    if lanes > DEFAULT_LANES and lanes > MOST_LANES_EACH * consumers:
        lanes = -(-DEFAULT_LANES // consumers) * consumers
    return lanes * -(-max(senders_of(cfg), 1) // lanes)


def latents_are_open(cfg: RunConfig) -> bool:
    """Return whether the number of latents will follow from the width of the activations."""
    return cfg.sae.num_latents is None and not cfg.grid.num_latents and not cfg.grid.hook_num_latents


def consumers_of(cfg: RunConfig) -> int:
    """Return the consumers of a group, which share out rows, lanes and latents."""
    return cfg.topology.shard * cfg.topology.dp


def senders_of(cfg: RunConfig) -> int:
    """Return the ranks that compute chunks for others: with ZeRO-3 each rank of a producer's group."""
    return cfg.topology.producers * (cfg.llm.shard_size if cfg.llm.shard == "zero3" else 1)


@dataclass(frozen=True)
class Misfit:
    """A value that cannot be shared out: what is written now, what would fit, and the numbers that must."""

    now: str
    fit: str
    counts: tuple[int, ...]


def sharing_problems(cfg: RunConfig, expansion: float | None = None, *, begun: bool = False) -> Iterator[str]:
    """Yield one line of all values that shard x dp does not divide.

    Args:
        expansion: `sae.expansion`, where the number of latents was made from it.
        begun: the run continues, and its values are fixed: only the ranks may be others.
    """
    topology, consumers = cfg.topology, consumers_of(cfg)
    if topology.shard < 1 or topology.dp < 1:
        return
    found = [each for each in misfits(cfg, consumers) if any(count % consumers for count in each.counts)]
    if not found:
        return
    ranks = f"topology.shard={topology.shard}" + (f" x topology.dp={topology.dp}" if topology.dp > 1 else "")
    names = [each.now for each in found]
    listed = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
    refused = f"{listed} {'is' if len(names) == 1 else 'are'} not divisible by {ranks}"
    counts = [count for each in misfits(cfg, consumers) for count in each.counts]
    if begun:
        yield f"{refused}, and the run was begun with that; shard x dp can be {_divisors(math.gcd(*counts))}"
        return
    if cfg.reads_cache and (lanes := cfg.shuffle.lanes or 0) % consumers:
        yield (
            f"{refused}, and the cache was made with these lanes; shard x dp can be {_divisors(lanes)}, or "
            f"harvest one with shuffle.lanes={math.lcm(lanes, consumers)}"
        )
        return
    fits = " ".join(each.fit for each in found)
    if expansion is not None and any(each.fit.startswith("sae.num_latents") for each in found):
        fits += f" in place of sae.expansion={expansion:g}"
    shards = [n for n in range(1, topology.shard) if not any(count % (n * topology.dp) for count in counts)]
    fewer = f", or topology.shard={shards[-1]}" if shards else ""
    yield f"{refused}; use {fits}{fewer}"


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number, MOST_RANKS) + 1) if number % n == 0)


def misfits(cfg: RunConfig, consumers: int) -> Iterator[Misfit]:
    """Yield every value that must be divisible, whether it is or not."""
    if cfg.shuffle.lanes is not None:
        lanes = cfg.shuffle.lanes
        fit_lanes = max(round(lanes / consumers), -(-max(senders_of(cfg), 1) // consumers)) * consumers
        yield Misfit(f"shuffle.lanes={lanes}", f"shuffle.lanes={fit_lanes}", (lanes,))
    # Not more than now: the run might be shorter than a larger step, or its evaluations more frequent.
    rows = max(cfg.batch // consumers, 1) * consumers
    yield Misfit(f"batch={cfg.batch}", f"batch={rows}", (cfg.batch,))
    key = "num_latents" if cfg.grid.num_latents else "hook_num_latents"
    if widths := getattr(cfg.grid, key):
        fit = [fitting(cfg, width, consumers) for width in widths]
        fit = list(dict.fromkeys(fit)) if key == "num_latents" else fit
        now, then = (",".join(map(str, each)) for each in (widths, fit))
        yield Misfit(f"grid.{key}=[{now}]", f"'grid.{key}=[{then}]'", tuple(widths))
    elif cfg.sae.num_latents is not None:
        width = cfg.sae.num_latents
        fit_width = fitting(cfg, width, consumers)
        yield Misfit(f"sae.num_latents={width}", f"sae.num_latents={fit_width}", (width,))


def fitting(cfg: RunConfig, width: int, consumers: int) -> int:
    """Return the multiple of the consumers nearest to a number of latents, not fewer than are selected."""
    fewest = max([1, cfg.sae.k, cfg.sae.aux_k or 0, *(cfg.grid.k or cfg.grid.hook_k or ())])
    multiple = max(round(width / consumers), -(-min(fewest, width) // consumers), 1)
    return multiple * consumers
