"""Training from a cache: what its manifest settles, and how many chunks of each lane a run draws."""

import copy
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from sae_dist.config.resolve import block_of
from sae_dist.config.run import RunConfig, flat
from sae_dist.core.errors import ConfigError

LLM_KEYS = ("llm.name", "llm.dtype", "llm.attn", "llm.random_init")
"""Fields of the LLM that its activations depend on. `llm.trust_remote_code` is not among them: whether code
that came with a model may run is never read from somebody's file."""
LEFT_OPEN = ("llm.dtype", "tokens.context", "hook")
"""Keys that null leaves open; of the others null is a value like any."""
OTHER_KEYS = ("hook", "target_hook", "seed", "shuffle.lanes", "shuffle.chunk_rows")


def settled_keys(cfg: RunConfig) -> list[str]:
    """Every key whose value decides which chunks a run is given, and which a manifest therefore holds."""
    return [*LLM_KEYS, *(key for key in flat(cfg) if key.startswith("tokens.")), *OTHER_KEYS]


def harvest_identity(cfg: RunConfig) -> dict[str, Any]:
    """The values of a resolved config that the files of its harvest depend on, by full key."""
    kept = {*settled_keys(cfg), "train_tokens", "shuffle.block_chunks", "device"}
    return {key: value for key, value in flat(cfg).items() if key in kept or key.startswith("cache.")}


def chunks_needed(rows: int, *, lanes: int, chunk_rows: int, block_chunks: int) -> int:
    """Chunks that each lane must have for a run of `rows` activations, whatever its seed.

    A lane reads whole groups of `block_chunks`. By the end of n groups it has handed out all of their rows
    but those that the last one deferred, at most a group's: so one group more than the rows fill.
    """
    group = block_chunks * chunk_rows
    lane_rows = math.ceil(rows / lanes)
    return (math.ceil(lane_rows / group) + 1) * block_chunks


def rows_served(chunks: int, *, lanes: int, chunk_rows: int, block_chunks: int) -> int:
    """The longest run that `chunks` in each lane are enough for: the inverse of `chunks_needed`."""
    return max(chunks // block_chunks - 1, 0) * block_chunks * chunk_rows * lanes


def fill(
    cfg: RunConfig,
    settings: Mapping[str, Any],
    *,
    given: Iterable[str],
    other_names: Mapping[str, str],
) -> RunConfig:
    """A copy of `cfg` with what the manifest of `activations.path` settles.

    Args:
        settings: the manifest's value of each of `settled_keys`.
        given: keys that the command gives, itself or by a group or file that it names.
        other_names: other names of the manifest's value, by key.

    Raises:
        ConfigError: a key is given another value than the manifest's; names both.
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
    """Whether a cache of `chunks` in each lane is enough for the run; an open block is made small enough.

    Raises:
        ConfigError: it is not; says what would be.
    """
    given, rows = cfg.shuffle.block_chunks, cfg.train_tokens // cfg.batch * cfg.batch
    sizes = {"lanes": cfg.shuffle.lanes, "chunk_rows": cfg.shuffle.chunk_rows}
    blocks = [given] if given else range(block_of(cfg), 0, -1)
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
    """A value in a form that compares; a hook's direction may be left out."""
    return json.dumps(value.removesuffix(":out") if isinstance(value, str) else value)
