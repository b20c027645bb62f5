"""Needs of a run, by arithmetic on its config: memory of each rank, files, operations."""

import os
from collections.abc import Sequence
from pathlib import Path

from sae_dist.config.grid import shared_out, single
from sae_dist.config.needs import consumer_memory, dictionary_bytes, step_flops
from sae_dist.config.rules.checkpoint import checkpoint_bytes, most_checkpoints, weight_bytes
from sae_dist.config.rules.sharding import world_formula, world_size_of
from sae_dist.config.run import Single
from sae_dist.core.text import gib
from sae_dist.launch.settle import Settled

TERA = 1e12


def forecast(settled: Settled) -> str:
    """Return the lines that `--dry-run` prints. Nothing in them is measured."""
    cfg, topology, shuffle = settled.cfg, settled.cfg.topology, settled.cfg.shuffle
    folder = Path(cfg.output).expanduser() / cfg.name
    members = settled.members or (single(cfg, folder),)
    shapes = [_shape(settled, each) for each in members]
    latent_rows = [
        columns if each.target_hook else target
        for each, (columns, target) in zip(members, shapes, strict=True)
    ]
    pairs = list(zip(members, latent_rows, strict=True))
    saved, exported = (sum(count(*pair) for pair in pairs) for count in (checkpoint_bytes, weight_bytes))
    flops = sum(step_flops(each, _widths(*shape)) for each, shape in zip(members, shapes, strict=True))
    model = _model_bytes(settled)
    lines = [
        os.path.relpath(folder),
        f"{world_formula(cfg)} = {world_size_of(cfg)} ranks; {cfg.device}, {cfg.precision}, "
        f"{cfg.kernels} kernels",
        f"{cfg.steps:,} steps of {cfg.batch:,} activations; {shuffle.lanes} lanes, blocks of "
        f"{shuffle.block_chunks} chunks of {shuffle.chunk_rows:,}",
        _consumer(settled, members, shapes, 0 if topology.producers else model),
    ]
    if topology.producers:
        lines.append(f"each producer: {gib(model, 2)} language model, and its activations")
    lines += [
        f"disk: {gib(saved, 2)} for a checkpoint, {most_checkpoints(cfg)} at most; {gib(exported, 2)} for "
        "the export",
        f"{flops / TERA:,.3g} TFLOP for the dictionary in each step, all consumers together",
        "by arithmetic; nothing of it was measured",
    ]
    return "\n  ".join(lines)


def _consumer(
    settled: Settled, members: Sequence[Single], shapes: Sequence[tuple[int, int]], model: int
) -> str:
    """Say what a consumer holds between two steps; of several groups the one that holds most."""
    cfg = settled.cfg
    groups = [shared_out(cfg, group) for group in range(cfg.topology.groups)] if cfg.is_grid else [[0]]
    held = {}
    for numbers in groups:
        own = [members[n] for n in numbers]
        widest = max(shapes[n] for n in numbers)
        dictionaries = dictionary_bytes(own, *widest)
        # The rows of each hook wait once, whichever dictionaries read them.
        buffers = {
            (members[n].hook, members[n].target_hook): consumer_memory(members[n], *shapes[n]).rows
            for n in numbers
        }
        held[dictionaries + sum(buffers.values())] = sum(buffers.values())
    most, buffer = max(held.items())
    return (
        f"each consumer: {gib(most + model, 2)} = {gib(most - buffer, 2)} dictionary and optimizer + "
        f"{gib(buffer, 2)} shuffle buffer + {gib(model, 2)} language model; a step takes more for a while: "
        "count on 80 % of the memory"
    )


def _model_bytes(settled: Settled) -> int:
    """Count the bytes of the language model that one rank holds; 0: training runs none."""
    cfg, facts = settled.cfg, settled.facts
    if facts is None or not cfg.runs_llm:
        return 0
    from sae_dist.llm.fit import weights_bytes

    return weights_bytes(facts, cfg.llm.dtype) // cfg.llm.shard_size


def _shape(settled: Settled, member: Single) -> tuple[int, int]:
    """Return the width of a row that flows to a dictionary, and of what it reconstructs."""
    if settled.facts is None:
        return settled.columns, settled.columns
    own = settled.facts.only(member.hook, member.target_hook)
    return own.columns, own.widths[-1]


def _widths(columns: int, target: int) -> tuple[int, ...]:
    return (target,) if columns == target else (columns - target, target)
