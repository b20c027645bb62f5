"""A run that ran out of memory: what held it, and what would fit."""

from pathlib import Path

import torch

from sae_dist.config.needs import held_bytes, what_would_fit
from sae_dist.config.run import RunConfig
from sae_dist.core.errors import SaeDistError
from sae_dist.core.place import Place
from sae_dist.core.text import first_line, gib, print_line
from sae_dist.core.types import LlmFacts
from sae_dist.llm.fit import memory_bytes, weights_bytes
from sae_dist.transport.file import open_array

SNAPSHOT = "memory_rank_{rank}.pickle"


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of the host, whose allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def explained(
    error: Exception,
    cfg: RunConfig,
    facts: LlmFacts | None,
    folder: Path,
    where: Place,
    device: torch.device,
) -> SaeDistError:
    """The line that a person needs; on a GPU a snapshot of its memory is written first."""
    if device.type == "cuda":
        path = folder / "traces" / SNAPSHOT.format(rank=where.rank)
        path.parent.mkdir(exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))
        print_line(f"memory snapshot for pytorch.org/memory_viz: {path}")
    room = memory_bytes(device.type) // (1 if device.type == "cuda" else where.local_world)
    llm = 0
    if facts is not None and cfg.topology.producers == 0 and cfg.activations.kind == "llm":
        assert cfg.llm.dtype is not None, "filled in by config.resolve"
        llm = weights_bytes(facts, cfg.llm.dtype)
    columns, target = widths(cfg, facts)
    return SaeDistError(in_words(cfg, columns, target, room, llm, first_line(error)[:200]))


def widths(cfg: RunConfig, facts: LlmFacts | None) -> tuple[int, int]:
    """Of a row that a dictionary reads, and of what it reconstructs."""
    if facts is not None:
        one = facts.only(facts.hook)
        return one.columns, one.widths[-1]
    if cfg.activations.width is not None:
        return cfg.activations.width, cfg.activations.width
    assert cfg.activations.path is not None, "checked by config.validate"
    width = open_array(cfg.activations.path, cfg.activations.key).shape[1]
    return width, width


def in_words(cfg: RunConfig, columns: int, target: int, room: int, llm: int, reason: str) -> str:
    """One line.

    Args:
        room: bytes of memory that this rank has, of which the language model takes `llm`.
    """
    held = held_bytes(cfg, columns, target)
    parts = f"{gib(held, 2)} of dictionary, optimizer and waiting activations"
    if llm:
        parts += f" and {gib(llm, 2)} of language model"
    fits = what_would_fit(cfg, columns, target, room - llm)
    half = f"batch={cfg.batch // 2}, or shuffle.chunk_rows={max(cfg.shuffle.chunk_rows // 2, 1)}"
    would = (
        f"what would fit: {' or '.join(fits)}"
        if fits
        else f"what a step holds for a while is less with {half}"
    )
    return f"out of memory: this rank holds {parts} of {gib(room, 2)}; {would} ({reason})"
