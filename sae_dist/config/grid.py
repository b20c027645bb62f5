"""Many dictionaries on one stream: the config of a grid, and those of its dictionaries."""

import copy
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from sae_dist.config.kinds import SELECTED
from sae_dist.config.run import Resolved, RunConfig, Single, load_config, narrowed
from sae_dist.config.sections import OF_HOOKS, GridConfig
from sae_dist.config.tables import LARGEST_GRID
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG

C = TypeVar("C", bound=RunConfig)
VARIES = {
    "hook": "hook",
    "num_latents": "sae.num_latents",
    "k": "sae.k",
    "lr": "optim.lr",
    "seed": "sae.seed",
}
"""The keys of `grid` that vary alone, and the key that each sets in the config of one dictionary."""
SETS = VARIES | OF_HOOKS
STAR = "*"
"""In a hook of a grid, it stands for the number of every layer."""
Pair = tuple[str | None, str | None]
"""A hook, and the target of a transcoder; None: of an autoencoder."""


def varied(cfg: RunConfig) -> dict[str, list[Any]]:
    """Return the lists that are given and vary alone, by key; empty if the run trains one dictionary."""
    lists = {key: getattr(cfg.grid, key) for key in VARIES}
    return {key: values for key, values in lists.items() if values is not None}


def members(cfg: C) -> list[C]:
    """Return the config of each dictionary as if it were trained alone, the last key varying fastest.

    Their folders are inside the run's. A run without a grid is its only member.
    """
    lists = varied(cfg)
    if not lists:
        return [cfg]
    found = []
    for numbers in itertools.product(*map(range, map(len, lists.values()))):
        member = copy.deepcopy(cfg)
        member.grid = GridConfig()
        chosen = dict[str, Any]()
        for (key, values), number in zip(lists.items(), numbers, strict=True):
            chosen[key] = values[number]
            if key == "hook":
                chosen |= {name: each[number] for name, each in of_hooks(cfg).items()}
        for key, value in chosen.items():
            section, _, name = SETS[key].rpartition(".")
            setattr(getattr(member, section) if section else member, name, value)
        if chosen.keys() & {"num_latents", "hook_num_latents"}:
            member.sae.expansion = None
        member.topology.groups = 1
        member.output = str(Path(cfg.output) / (cfg.name or ""))
        member.name = member_name(chosen)
        member.metrics.group = cfg.metrics.group or cfg.name
        found.append(member)
    return found


def of_hooks(cfg: RunConfig) -> dict[str, list[Any]]:
    """Return the lists that are given and have a value for each of `grid.hook`, by key."""
    return {key: values for key in OF_HOOKS if (values := getattr(cfg.grid, key)) is not None}


def member_name(chosen: dict[str, Any]) -> str:
    """Return a name such as `num_latents=4096,k=16`, in characters that suit a folder's name.

    Widths and k of a hook are not in it, which the hook determines.
    """
    named = {key: value for key, value in chosen.items() if key in (*VARIES, "target_hook")}
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join(f"{key}={value}" for key, value in named.items()))


def member_folders(cfg: RunConfig, folder: Path) -> list[Path]:
    """Return the folder of each dictionary, with its own config, metrics, checkpoints and export."""
    return [folder / (member.name or "") for member in members(cfg)] if cfg.is_grid else [folder]


def member_configs(cfg: Resolved, folder: Path) -> list[Single]:
    """Read the resolved config of each dictionary of a run folder."""
    if not cfg.is_grid:
        return [narrowed(Single, cfg)]
    return [single(load_config(each / CONFIG), each) for each in member_folders(cfg, folder)]


def run_of(folder: Path) -> Path:
    """Return the run folder that a folder belongs to: for a dictionary of a grid the grid's, else itself."""
    parent = folder.absolute().parent
    if not (folder / CONFIG).is_file() or not (parent / CONFIG).is_file():
        return folder
    cfg = load_config(parent / CONFIG)
    return parent if cfg.is_grid and folder.absolute() in member_folders(cfg, parent) else folder


def single(cfg: Resolved, folder: Path) -> Single:
    """Return the config of a run folder as that of one dictionary.

    Raises:
        ConfigError: it is a grid's.
    """
    if cfg.is_grid:
        found = member_folders(cfg, folder)
        raise ConfigError(
            f"{folder} is a grid of {len(found)} dictionaries; give the folder of one: {found[0]}"
        )
    return narrowed(Single, cfg)


def shared_out(cfg: RunConfig, group: int) -> list[int]:
    """Return the numbers of the dictionaries that a group of consumers trains.

    They are dealt out widest first, each to the group with the fewest latents so far.
    """
    costs = [(member.sae.num_latents or 0) + 1 for member in members(cfg)]
    loads, found = [0] * cfg.topology.groups, [list[int]() for _ in range(cfg.topology.groups)]
    for number in sorted(range(len(costs)), key=lambda n: -costs[n]):
        idlest = loads.index(min(loads))
        loads[idlest] += costs[number]
        found[idlest].append(number)
    return sorted(found[group])


def captured(cfg: RunConfig) -> tuple[Pair, list[tuple[str, str | None]]]:
    """Return the places that the LLM is read at: the first, which may be open, and those that a grid adds."""
    if not cfg.grid.hook:
        return (cfg.hook, cfg.target_hook), []
    targets: list[str | None] = [None] * len(cfg.grid.hook)
    targets[:] = cfg.grid.target_hook or targets
    first, *more = zip(cfg.grid.hook, targets, strict=True)
    return first, more


def over_layers(cfg: C, num_layers: int) -> C:
    """Return the config with a hook of every layer in place of each hook of the grid that has a * in it.

    What belongs to such a hook, its target, width and k, goes with it to every layer.
    """
    cfg = copy.deepcopy(cfg)
    hooks, targets = cfg.grid.hook or [], cfg.grid.target_hook or []
    times = [
        num_layers if STAR in hook + target else 1
        for hook, target in itertools.zip_longest(hooks, targets[: len(hooks)], fillvalue="")
    ]
    for key in ("hook", *OF_HOOKS):
        values = getattr(cfg.grid, key)
        if values is not None and len(values) == len(hooks):
            spread = [
                each.replace(STAR, str(layer)) if isinstance(each, str) else each
                for each, number in zip(values, times, strict=True)
                for layer in range(number)
            ]
            setattr(cfg.grid, key, spread)
    return cfg


def names_layers(cfg: RunConfig) -> bool:
    """Return whether a hook of the grid has a * for the number of every layer."""
    return any(STAR in hook for hook in (*(cfg.grid.hook or ()), *(cfg.grid.target_hook or ())))


def grid_problems(cfg: RunConfig) -> Iterator[str]:
    """Yield broken rules of the lists; those of their values show in each dictionary's own config."""
    for key, values in varied(cfg).items():
        if not values:
            yield f"grid.{key}=[] is empty; give values, or leave it out"
        targets = cfg.grid.target_hook if key == "hook" else None
        pairs = list(zip(values, targets, strict=False)) if targets is not None else values
        twice = [value for value, pair in zip(values, pairs, strict=False) if pairs.count(pair) > 1]
        if twice:
            yield f"grid.{key}={_written(values)} holds {twice[0]} twice; a grid trains each once"
    if cfg.grid.misfit:
        yield cfg.grid.misfit
        return
    grid, groups = cfg.grid, cfg.topology.groups
    if groups < 1:
        yield f"topology.groups={groups} must be greater than 0"
    number = grid.size
    if number > LARGEST_GRID:
        yield f"grid has {number} dictionaries; at most {LARGEST_GRID}"
    if groups > number:
        yield f"topology.groups={groups} is more than the grid's {number} dictionaries; use at most {number}"
    if groups > 1 and cfg.topology.producers == 0 and cfg.runs_llm:
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
    for key in ("k", "hook_k"):
        if (values := getattr(grid, key)) is not None and cfg.sae.kind not in SELECTED:
            k = f"grid.{key}={_written(values)}"
            yield f"{k} is not read with sae.kind={cfg.sae.kind}; use sae=topk, or leave it out"
    for both in ("num_latents", "k"):
        if getattr(grid, both) is not None and getattr(grid, f"hook_{both}") is not None:
            yield f"grid.{both} and grid.hook_{both} are both given; give one"
    if grid.hook is None:
        return
    hooks = f"grid.hook={_written(grid.hook)}"
    if not cfg.runs_llm:
        yield f"{hooks} is not read with activations.kind={cfg.activations.kind}; leave grid.hook out"
    if cfg.hook is not None and cfg.hook not in grid.hook:
        yield f"{hooks} and hook={cfg.hook} are both given; give one"
    if cfg.target_hook is not None and cfg.target_hook not in (grid.target_hook or ()):
        yield (
            f"{hooks} with target_hook={cfg.target_hook}: give grid.target_hook in its place, one target for "
            "each hook"
        )


def _written(values: list[Any]) -> str:
    return f"[{','.join(map(str, values))}]"
