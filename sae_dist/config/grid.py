"""Many dictionaries on one stream: a grid's config, and those of its dictionaries."""

import copy
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_dist.config.kinds import SELECTED
from sae_dist.config.run import RunConfig
from sae_dist.config.sections import GridConfig
from sae_dist.core.errors import ConfigError

VARIES = {
    "hook": "hook",
    "num_latents": "sae.num_latents",
    "k": "sae.k",
    "lr": "optim.lr",
    "seed": "sae.seed",
}
"""Keys of `grid`, and what each sets in a dictionary's own config."""


def varied(cfg: RunConfig) -> dict[str, list[Any]]:
    """The lists that are given, by key; empty: the run trains one dictionary."""
    lists = {key: getattr(cfg.grid, key) for key in VARIES}
    return {key: values for key, values in lists.items() if values is not None}


def members(cfg: RunConfig) -> list[RunConfig]:
    """The config of each dictionary as if it were trained alone, the last key varying fastest.

    Their folders lie in the run's own. A run without a grid is its only member.
    """
    lists = varied(cfg)
    if not lists:
        return [cfg]
    found = []
    for values in itertools.product(*lists.values()):
        member = copy.deepcopy(cfg)
        member.grid = GridConfig()
        chosen = dict(zip(lists, values, strict=True))
        for key, value in chosen.items():
            section, _, name = VARIES[key].rpartition(".")
            setattr(getattr(member, section) if section else member, name, value)
        if "num_latents" in chosen:
            member.sae.expansion = None
        member.topology.groups = 1
        member.output = str(Path(cfg.output) / (cfg.name or ""))
        member.name = member_name(chosen)
        member.metrics.group = cfg.metrics.group or cfg.name
        found.append(member)
    return found


def member_name(chosen: dict[str, Any]) -> str:
    """`num_latents=4096,k=16`, with nothing in it that a folder's name should not have."""
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join(f"{key}={value}" for key, value in chosen.items()))


def member_folders(cfg: RunConfig, folder: Path) -> list[Path]:
    """Where each dictionary's own config, metrics, checkpoints and export lie."""
    return [folder / (member.name or "") for member in members(cfg)] if varied(cfg) else [folder]


def check_single(cfg: RunConfig, folder: Path) -> None:
    """One dictionary is wanted.

    Raises:
        ConfigError: the folder is a grid's.
    """
    if varied(cfg):
        found = member_folders(cfg, folder)
        raise ConfigError(
            f"{folder} is a grid of {len(found)} dictionaries; give the folder of one: {found[0]}"
        )


def shared_out(cfg: RunConfig, group: int) -> list[int]:
    """Numbers of the dictionaries that a group of consumers trains: widest first, each to the idlest one."""
    costs = [(member.sae.num_latents or 0) + 1 for member in members(cfg)]
    loads, found = [0] * cfg.topology.groups, [list[int]() for _ in range(cfg.topology.groups)]
    for number in sorted(range(len(costs)), key=lambda n: -costs[n]):
        idlest = loads.index(min(loads))
        loads[idlest] += costs[number]
        found[idlest].append(number)
    return sorted(found[group])


def captured(cfg: RunConfig) -> tuple[str | None, list[str]]:
    """The hooks that the LLM is read at: the first, which may be open, and those that a grid adds."""
    return (cfg.grid.hook[0], cfg.grid.hook[1:]) if cfg.grid.hook else (cfg.hook, [])


def grid_problems(cfg: RunConfig) -> Iterator[str]:
    """Rules of the lists themselves; their values are checked in each dictionary's own config."""
    for key, values in varied(cfg).items():
        if not values:
            yield f"grid.{key}=[] is empty; give values, or leave it out"
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            yield f"grid.{key}={_written(values)} holds {twice[0]} twice; a grid trains each once"
    grid, groups = cfg.grid, cfg.topology.groups
    if groups < 1:
        yield f"topology.groups={groups} must be greater than 0"
    number = len(members(cfg))
    if groups > number:
        yield f"topology.groups={groups} is more than the grid's {number} dictionaries; use at most {number}"
    if groups > 1 and cfg.topology.producers == 0 and cfg.activations.kind == "llm":
        yield (
            f"topology.groups={groups} with topology.producers=0: every group would run the LLM for itself; "
            "use topology.producers=1"
        )
    if groups > 1 and cfg.llm.shard == "zero3":
        yield f"topology.groups={groups} is not possible with llm.shard=zero3; use topology.groups=1"
    if cfg.checkpoint.keep < 2:
        yield (
            f"checkpoint.keep={cfg.checkpoint.keep} with a grid: its dictionaries save in turn, and go on "
            "from a step that all have; use checkpoint.keep=2"
        )
    if grid.k is not None and cfg.sae.kind not in SELECTED:
        k = f"grid.k={_written(grid.k)}"
        yield f"{k} is not read with sae.kind={cfg.sae.kind}; use sae=topk, or leave it out"
    if grid.hook is None:
        return
    hooks = f"grid.hook={_written(grid.hook)}"
    if cfg.activations.kind != "llm":
        yield f"{hooks} is not read with activations.kind={cfg.activations.kind}; leave grid.hook out"
    if cfg.hook is not None and cfg.hook not in grid.hook:
        yield f"{hooks} and hook={cfg.hook} are both given; give one"
    if cfg.eval.ce is not None:
        yield f"eval.ce={cfg.eval.ce} splices one hook in, and {hooks} names several; leave eval.ce out"
    if cfg.target_hook is not None:
        yield f"{hooks} with target_hook={cfg.target_hook}: hooks of a grid get autoencoders; leave one out"


def _written(values: list[Any]) -> str:
    return f"[{','.join(map(str, values))}]"
