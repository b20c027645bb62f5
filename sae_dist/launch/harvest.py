"""`sae-dist harvest`: compose -> facts -> resolve -> validate -> freeze -> spawn here, or join."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

from sae_dist.config.grid import varied
from sae_dist.config.resolve import parse_counts
from sae_dist.config.rules.cache import harvest_identity
from sae_dist.config.run import RunConfig
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError, Preempted
from sae_dist.core.place import launched, place
from sae_dist.core.text import gib
from sae_dist.launch.compose import compose_config
from sae_dist.launch.freeze import FolderKind, Frozen, freeze
from sae_dist.launch.run import leaving_nothing, own_signals
from sae_dist.launch.settle import settle


def harvest_command(overrides: list[str]) -> None:
    """One harvest, from its overrides to its manifest.

    Raises:
        SaeDistError: see `core.errors`; input found wrong leaves nothing behind.
    """
    if launched():
        _harvest_joined(overrides)
        return
    frozen, ranks = prepare(overrides, None)
    if frozen.finished:
        return
    with leaving_nothing(frozen):
        if ranks == 1:
            _harvest_rank(frozen.folder)
        else:
            from sae_dist.launch.spawn import spawn

            spawn(frozen.folder, ranks, "harvest-rank")
    _tell(frozen.folder)


def _harvest_joined(overrides: list[str]) -> None:
    """Be one of the ranks that a launcher started."""
    from sae_dist.launch.join import SaidByRankZero, agree_on_run

    where = place()
    frozen = agree_on_run(where, lambda: prepare(overrides, where.world)[0])
    if frozen.finished:
        return
    try:
        with leaving_nothing(frozen):
            _harvest_rank(frozen.folder)
    except Preempted as error:
        if where.rank:
            raise SaidByRankZero(error.exit_code) from None
        raise
    if where.rank == 0:
        _tell(frozen.folder)


def prepare(overrides: list[str], world_size: int | None) -> tuple[Frozen, int]:
    """Check everything that can be checked before a process starts; the frozen folder, and the ranks.

    Args:
        world_size: ranks that a launcher started; None: this command starts its own.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    cfg = parse_counts(compose_config(overrides))
    # Nothing is trained: every rank is a producer.
    cfg.topology.shard = cfg.topology.dp = 1
    validate(cfg)
    if cfg.activations.kind != "llm":
        raise ConfigError(
            f"activations.kind={cfg.activations.kind}: a harvest keeps the activations of a language model; "
            "leave activations out"
        )
    if varied(cfg):
        raise ConfigError("grid is not read by a harvest; train with grid keys from the cache that it makes")
    if cfg.llm.shard != "none":
        raise ConfigError(
            f"llm.shard={cfg.llm.shard}: in a harvest every rank holds the whole model; leave llm.shard "
            "out, or train without a cache"
        )
    ranks = max(cfg.topology.producers, 1)
    if world_size not in (None, ranks):
        raise ConfigError(
            f"WORLD_SIZE={world_size} does not match topology.producers={cfg.topology.producers}: a harvest "
            f"has no other ranks; start {ranks}, or set topology.producers={world_size}"
        )
    name = cfg.name
    settled = settle(cfg)
    cfg = settled.cfg
    validate(cfg)
    _check_devices(cfg, ranks, world_size)
    cfg.name = name or _name(cfg)
    frozen = freeze(cfg, settled.columns, _cache_folder())
    if settled.note:
        print(settled.note, file=sys.stderr)
    if frozen.finished:
        print(f"{frozen.folder} is finished: train with activations=cache activations.path={frozen.folder}")
    return frozen, ranks


def _cache_folder() -> FolderKind:
    from sae_dist.transport.cache_manifest import HARVEST

    return FolderKind("cache", HARVEST, harvest_identity, _is_finished, _space)


def _is_finished(folder: Path) -> bool:
    """Whether the manifest and all of its shards are there."""
    from sae_dist.transport.cache_manifest import check_files, read_manifest

    try:
        check_files(str(folder), read_manifest(str(folder)))
    except ConfigError:
        return False
    return True


def _space(cfg: RunConfig, width: int) -> tuple[int, str, str]:
    """All rows with their ids, and the little around each chunk."""
    from sae_dist.train.harvest import lane_chunks
    from sae_dist.transport.cache_manifest import DTYPES

    chunks = lane_chunks(cfg) * cfg.shuffle.lanes
    chunk_bytes = cfg.shuffle.chunk_rows * (width * DTYPES[cfg.cache.dtype].itemsize + 8) + 4096
    return chunks * chunk_bytes, f"{chunks} chunks of {chunk_bytes} bytes", "lower train_tokens"


def _name(cfg: RunConfig) -> str:
    """`<llm>-<hook>-cache-<hash>`; a transcoder's hook is `<hook>-to-<target_hook>`."""
    hooks = [hook.removesuffix(":out").replace(":", "_") for hook in (cfg.hook, cfg.target_hook) if hook]
    text = json.dumps(harvest_identity(cfg), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    readable = f"{Path(cfg.llm.name).name}-{'-to-'.join(hooks)}-cache"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{readable[:200]}-{digest}").lstrip(".")


def _check_devices(cfg: RunConfig, ranks: int, world_size: int | None) -> None:
    if cfg.device != "cuda" or world_size is not None:
        return
    import torch

    found = torch.cuda.device_count()
    if ranks > found:
        raise ConfigError(
            f"device=cuda: topology.producers={ranks} processes need a GPU each, and there are {found}; "
            "use fewer, or device=cpu"
        )


def _harvest_rank(folder: Path) -> None:
    from sae_dist.train.harvest import harvest_rank

    with own_signals():
        harvest_rank(folder)


def _tell(folder: Path) -> None:
    """What there is now, and how to use it."""
    from sae_dist.transport.cache_manifest import read_manifest

    manifest = read_manifest(str(folder))
    size = sum(shard.bytes for shard in manifest.shards)
    chunks = manifest.chunks_per_lane * manifest.lanes
    print(
        f"{os.path.relpath(folder)}\n{chunks * manifest.rows:,} activations in {chunks:,} chunks, "
        f"{len(manifest.shards):,} shards, {gib(size, 2)}\n"
        f"train with: activations=cache activations.path={os.path.relpath(folder)}"
    )
