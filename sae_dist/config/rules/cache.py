"""Rules of training from a cache: what its manifest fixes, and how many chunks of each lane a run needs."""

import copy
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from sae_dist.config.plain import fitting
from sae_dist.config.resolve import block_of
from sae_dist.config.run import Resolved, RunConfig, flat, schema
from sae_dist.config.tables import CHOICES, MAY_BE_OPEN
from sae_dist.core.errors import ConfigError

LLM_KEYS = ("llm.name", "llm.dtype", "llm.attn", "llm.packed", "llm.random_init")
"""Fields of the LLM that its activations depend on. `llm.trust_remote_code` is left out: whether code that
comes with a model may run is never read from a downloaded file."""
LEFT_OPEN = ("llm.dtype", "tokens.context", "hook", "shuffle.lanes")
"""Keys whose null means open; for the others null is a value like any."""
NEEDED = ("llm.name", "hook", "shuffle.lanes", "shuffle.chunk_rows")
"""Keys that every manifest has a value for."""
OTHER_KEYS = ("hook", "target_hook", "seed", "shuffle.lanes", "shuffle.chunk_rows")


def settled_keys() -> list[str]:
    """Return the keys whose values decide which chunks a run gets; a manifest holds no others."""
    return [*LLM_KEYS, *(key for key in schema() if key.startswith("tokens.")), *OTHER_KEYS]


def settled(settings: Any) -> dict[str, Any]:
    """Return what a manifest settles, each value of the schema's type and within its bound.

    Raises:
        ValueError: a key that no manifest settles, one that is missing, or a value that does not fit.
    """
    if not isinstance(settings, Mapping):
        raise ValueError("its settings hold no keys")
    keys, kinds, found = settled_keys(), schema(), {}
    for key, value in settings.items():
        if key not in keys:
            raise ValueError(f"it sets {str(key)[:60]}, which no manifest settles")
        found[key] = fitting(value, kinds[key], key)
        if key in CHOICES and found[key] not in CHOICES[key] and not (value is None and key in MAY_BE_OPEN):
            raise ValueError(f"{key}={value} is not one of {', '.join(CHOICES[key])}")
    for key in NEEDED:
        if found.get(key) is None:
            raise ValueError(f"{key} is missing")
        if isinstance(found[key], int) and found[key] < 1:
            raise ValueError(f"{key}={found[key]} must be greater than 0")
    return found


def harvest_identity(cfg: Resolved) -> dict[str, Any]:
    """Return the values of a resolved config that the files of its harvest depend on, by full key."""
    kept = {*settled_keys(), "train_tokens", "shuffle.block_chunks", "device"}
    return {key: value for key, value in flat(cfg).items() if key in kept or key.startswith("cache.")}


def chunks_needed(rows: int, *, lanes: int, chunk_rows: int, block_chunks: int) -> int:
    """Return the chunks that each lane must have for a run of `rows` activations, whatever its seed.

    A lane reads whole groups of `block_chunks`. By the end of n groups it has handed out all of their rows
    except those that the last one deferred, at most one group's. So a lane needs one group more than the
    rows fill.
    """
    group = block_chunks * chunk_rows
    lane_rows = math.ceil(rows / lanes)
    return (math.ceil(lane_rows / group) + 1) * block_chunks


def rows_served(chunks: int, *, lanes: int, chunk_rows: int, block_chunks: int) -> int:
    """Return the length of the longest run that `chunks` in each lane suffice for.

    This is the inverse of `chunks_needed`.
    """
    return max(chunks // block_chunks - 1, 0) * block_chunks * chunk_rows * lanes


def fill(
    cfg: RunConfig,
    settings: Mapping[str, Any],
    *,
    given: Iterable[str],
    other_names: Mapping[str, str],
) -> RunConfig:
    """Return a copy of `cfg` with the values that the manifest of `activations.path` fixes.

    Args:
        settings: the manifest's value of each of `settled_keys`.
        given: keys that the command sets, itself or by a group or file that it names.
        other_names: other spellings of the manifest's values, by key.

    Raises:
        ConfigError: a key is set to another value than the manifest's; the message names both.
    """
    cfg = copy.deepcopy(cfg)
    asked, found = flat(cfg), set(given)
    for key, value in settings.items():
        same = (_plain(value), _plain(other_names.get(key, value)))
        if asked[key] is None and (key in LEFT_OPEN or key == "tokens.path" and cfg.tokens.kind != "text"):
            found.discard(key)
        if key in found and _plain(asked[key]) not in same:
            raise ConfigError(
                f"{key}={asked[key]} is not what the cache was made with: activations.path="
                f"{cfg.activations.path} has {key}={value}; leave {key} out, or harvest another cache"
            )
        section, _, name = key.rpartition(".")
        setattr(getattr(cfg, section) if section else cfg, name, value)
    return cfg


def check_length(cfg: RunConfig, chunks: int) -> None:
    """Check that a cache of `chunks` in each lane suffices for the run, and choose a block that is open.

    Raises:
        ConfigError: the cache is too short; the message says how long a run it has room for.
    """
    given, rows, lanes = cfg.shuffle.block_chunks, cfg.steps * cfg.batch, cfg.shuffle.lanes
    assert lanes is not None, "filled in from the manifest"
    sizes = {"lanes": lanes, "chunk_rows": cfg.shuffle.chunk_rows}
    blocks = [given] if given else range(block_of(cfg, lanes), 0, -1)
    needed = {block: chunks_needed(rows, block_chunks=block, **sizes) for block in blocks}
    for block in blocks:
        if needed[block] <= chunks:
            cfg.shuffle.block_chunks = block
            return
    most = max(rows_served(chunks, block_chunks=block, **sizes) for block in blocks)
    fix = f"train on at most train_tokens={most}, or " if most >= cfg.batch else ""
    raise ConfigError(
        f"train_tokens={cfg.train_tokens} needs {min(needed.values())} chunks of each lane and the cache at "
        f"activations.path={cfg.activations.path} has {chunks}; {fix}harvest a longer one"
    )


def _plain(value: Any) -> str:
    """Return a value in a form that compares equal however it is written, with `:out` or without."""
    return json.dumps(value.removesuffix(":out") if isinstance(value, str) else value)
