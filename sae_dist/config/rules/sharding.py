"""Rules of LLMs that are sharded over a group of ranks, and the number of ranks of a run."""

from collections.abc import Iterator

from sae_dist.config.rules.sharing import default_lanes, senders_of
from sae_dist.config.run import RunConfig


def world_size_of(cfg: RunConfig) -> int:
    """Return the ranks of a run: producers * llm.shard_size + groups * shard * dp."""
    topology = cfg.topology
    return topology.producers * cfg.llm.shard_size + topology.groups * topology.shard * topology.dp


def world_formula(cfg: RunConfig) -> str:
    """Write out, for messages, how the keys make up the number of ranks."""
    size = " x llm.shard_size" if cfg.llm.shard_size > 1 else ""
    groups = "topology.groups x " if cfg.topology.groups > 1 else ""
    return f"topology.producers{size} + {groups}topology.shard x topology.dp"


def world_problems(cfg: RunConfig, world_size: int | None) -> Iterator[str]:
    """Yield the mismatch between the ranks that a launcher started, None for none, and those of the keys."""
    topology, needed = cfg.topology, world_size_of(cfg)
    if world_size is not None and world_size != needed:
        consuming = topology.groups * topology.shard * topology.dp
        shard, rest = divmod(world_size - (needed - consuming), topology.groups * topology.dp)
        fix = f", or set topology.shard={shard}" if shard > 0 and rest == 0 else ""
        groups = f"{topology.groups} x " if topology.groups > 1 else ""
        yield (
            f"WORLD_SIZE={world_size} does not match {world_formula(cfg)} = {needed - consuming} + "
            f"{groups}{topology.shard} x {topology.dp} = {needed}; start {needed} ranks{fix}"
        )


def sharding_problems(cfg: RunConfig) -> Iterator[str]:
    """Yield broken rules between llm.shard, its size and the topology."""
    llm, topology, lanes = cfg.llm, cfg.topology, cfg.shuffle.lanes
    shard = f"llm.shard={llm.shard}"
    ranks = senders_of(cfg)
    if llm.shard == "none" and llm.shard_size > 1:
        yield (
            f"llm.shard_size={llm.shard_size} with llm.shard=none: one rank holds the model; "
            "use llm.shard=zero3 or llm.shard=tp, or leave llm.shard_size out"
        )
    if llm.offload and llm.shard != "zero3":
        yield "llm.offload=true is read with llm.shard=zero3 only; use that, or leave llm.offload out"
    if llm.compile and llm.shard != "none":
        yield f"llm.compile=true is for a model that one rank holds; leave it out with {shard}"
    if lanes is not None and ranks > lanes:
        size = f" x llm.shard_size={llm.shard_size}" if ranks > topology.producers else ""
        yield (
            f"topology.producers={topology.producers}{size} is more than shuffle.lanes={lanes}; "
            f"use at most {lanes} producers, or shuffle.lanes={default_lanes(cfg)}"
        )
    if topology.groups > 1 and not cfg.is_grid:
        yield (
            f"topology.groups={topology.groups} shares out the dictionaries of a grid; give a grid, such as "
            "'grid.k=[16,32]', or use topology.shard and topology.dp for one dictionary"
        )
    if llm.shard == "none":
        return
    if not cfg.runs_llm:
        yield f"{shard} is not read with activations.kind={cfg.activations.kind}; leave llm.shard out"
    if llm.shard_size == 1:
        yield f"llm.shard_size=1 with {shard}: give the ranks that share the model, such as llm.shard_size=2"
    if topology.producers == 0:
        yield (
            f"{shard} needs ranks that only run the model: set topology.producers=1, which makes "
            f"{llm.shard_size} + {topology.shard * topology.dp} ranks"
        )
