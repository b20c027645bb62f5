"""The steps of `sae-dist harvest`: compose -> facts -> resolve -> validate -> freeze -> start."""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

from sae_dist.config.rules.cache import harvest_identity
from sae_dist.config.run import Resolved, RunConfig, load_config, parse_counts
from sae_dist.config.trust import Granted, executing
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError
from sae_dist.core.place import place
from sae_dist.core.text import gib, print_line, quoted, show
from sae_dist.launch.ahead import look_ahead
from sae_dist.launch.compose import compose_config
from sae_dist.launch.folder_kind import FolderKind
from sae_dist.launch.freeze import Frozen, freeze
from sae_dist.launch.identity import identity_of
from sae_dist.launch.length import with_open
from sae_dist.launch.settle import settle
from sae_dist.launch.start import Role, start


def harvest_command(overrides: list[str]) -> None:
    """Harvest activations, from the overrides to the manifest.

    Raises:
        SaeDistError: see `core.errors`; wrong input leaves nothing behind.
    """
    start(
        lambda world_size: prepare(overrides, world_size),
        HARVEST,
        _tell,
        lambda: executing(compose_config(overrides)),
    )


def prepare(overrides: list[str], world_size: int | None) -> Frozen:
    """Check everything that can be checked before a process starts, then freeze the folder.

    Args:
        world_size: ranks that a launcher started; None: this command starts its own.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    cfg = parse_counts(compose_config(overrides))
    # Nothing is trained: every rank is a producer.
    cfg.topology.shard = cfg.topology.dp = 1
    if cfg.is_grid:
        raise ConfigError("grid is not read by a harvest; train with grid keys from the cache that it makes")
    validate(cfg)
    if not cfg.runs_llm:
        raise ConfigError(
            f"activations.kind={cfg.activations.kind}: a harvest keeps the activations of a language model; "
            "leave activations out"
        )
    if cfg.llm.shard != "none":
        raise ConfigError(
            f"llm.shard={cfg.llm.shard}: in a harvest every rank holds the whole model; leave llm.shard "
            "out, or train without a cache"
        )
    ranks = _ranks_of(cfg)
    if world_size not in (None, ranks):
        raise ConfigError(
            f"WORLD_SIZE={world_size} does not match topology.producers={cfg.topology.producers}: a harvest "
            f"has no other ranks; start {ranks}, or set topology.producers={world_size}"
        )
    look_ahead(cfg, _cache_folder())
    name = cfg.name
    settled = settle(with_open(cfg, _cache_folder().config))
    resolved = settled.cfg
    validate(resolved)
    _check_devices(resolved, ranks, world_size)
    resolved.name = name or _name(resolved)
    frozen = freeze(resolved, settled.columns, _cache_folder(), data=identity_of(resolved))
    if settled.note:
        print_line(settled.note)
    if frozen.finished:
        show(f"{frozen.folder} is finished: {_train_with(frozen.folder)}")
    return dataclasses.replace(frozen, granted=executing(resolved))


def _cache_folder() -> FolderKind:
    from sae_dist.transport.cache_manifest import HARVEST

    return FolderKind("cache", "filled", HARVEST, harvest_identity, _is_finished, _space)


def _is_finished(folder: Path) -> bool:
    """Return whether the manifest and all of its shards are there."""
    from sae_dist.transport.cache_manifest import check_files, read_manifest

    try:
        check_files(str(folder), read_manifest(str(folder)))
    except ConfigError:
        return False
    return True


def _space(cfg: Resolved, width: int) -> tuple[int, str, str]:
    """Return the bytes that all chunks need, a phrase that counts them, and how to need fewer."""
    from sae_dist.train.harvest import lane_chunks
    from sae_dist.transport.cache_manifest import ITEM_BYTES

    chunks = lane_chunks(cfg) * cfg.shuffle.lanes
    chunk_bytes = cfg.shuffle.chunk_rows * (width * ITEM_BYTES[cfg.cache.dtype] + 8) + 4096
    return chunks * chunk_bytes, f"{chunks} chunks of {chunk_bytes} bytes", "lower train_tokens"


def _name(cfg: Resolved) -> str:
    """Return `<llm>-<hook>-cache-<hash>`; a transcoder's hook is `<hook>-to-<target_hook>`."""
    hooks = [hook.removesuffix(":out").replace(":", "_") for hook in (cfg.hook, cfg.target_hook) if hook]
    text = json.dumps(harvest_identity(cfg), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    readable = f"{Path(cfg.llm.name).name}-{'-to-'.join(hooks)}-cache"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{readable[:200]}-{digest}").lstrip(".")


def _check_devices(cfg: Resolved, ranks: int, world_size: int | None) -> None:
    if cfg.device != "cuda":
        return
    import torch

    found = torch.cuda.device_count()
    if world_size is not None:
        from sae_dist.distributed.runtime import gpu_of

        gpu_of(place(), found)
        return
    if ranks > found:
        raise ConfigError(
            f"device=cuda: topology.producers={ranks} processes need a GPU each, and there are {found}; "
            "use fewer, or device=cpu"
        )


def _ranks_of(cfg: RunConfig) -> int:
    return max(cfg.topology.producers, 1)


def _harvest_rank(folder: Path, granted: Granted) -> None:
    from sae_dist.train.harvest import harvest_rank

    harvest_rank(folder, granted)


def _count(folder: Path) -> int:
    from sae_dist.transport.cache_manifest import HARVEST as CONFIG

    return _ranks_of(load_config(folder / CONFIG))


HARVEST = Role("harvest", _count, _harvest_rank)


def _tell(folder: Path, _granted: Granted) -> None:
    """Print what there is now, and how to train from it."""
    from sae_dist.transport.cache_manifest import read_manifest

    manifest = read_manifest(str(folder))
    size = sum(shard.bytes for shard in manifest.shards)
    chunks = manifest.chunks_per_lane * manifest.lanes
    show(
        f"{os.path.relpath(folder)}\n{chunks * manifest.rows:,} activations in {chunks:,} chunks, "
        f"{len(manifest.shards):,} shards, {gib(size, 2)}\n"
        f"{_train_with(Path(os.path.relpath(folder)))}"
    )


def _train_with(folder: Path) -> str:
    return f"train with: activations=cache {quoted(f'activations.path={folder}')}"
