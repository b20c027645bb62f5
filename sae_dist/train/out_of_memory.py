"""Explains an error of memory: what the process held, and what would fit."""

from contextlib import suppress

import torch

from sae_dist.config.grid import member_configs
from sae_dist.config.needs import held_bytes, what_would_fit
from sae_dist.config.run import Resolved
from sae_dist.core.errors import SaeDistError
from sae_dist.core.text import first_line, gib, print_line
from sae_dist.core.types import LlmFacts
from sae_dist.llm.fit import memory_bytes, weights_bytes
from sae_dist.train.state import Rank
from sae_dist.transport.file import open_array

SNAPSHOT = "memory_rank_{rank}.pickle"


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out, of a GPU or of the host, whose allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def explained(error: Exception, rank: Rank) -> SaeDistError:
    """Return one line that says what to change; on a GPU, write a snapshot of its memory first."""
    cfg, facts, device = rank.cfg, rank.facts, rank.device
    if device.type == "cuda":
        path = rank.folder / "traces" / SNAPSHOT.format(rank=rank.where.rank)
        with suppress(OSError):  # of a disk; the memory is what this is about
            path.parent.mkdir(exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))
            print_line(f"memory snapshot for pytorch.org/memory_viz: {path}")
    room = memory_bytes(device.type) // (1 if device.type == "cuda" else rank.where.local_world)
    llm = 0
    if facts is not None and cfg.topology.producers == 0 and cfg.runs_llm:
        llm = weights_bytes(facts, cfg.llm.dtype)
    members = member_configs(cfg, rank.folder)
    columns, target = widths(cfg, facts)
    held = held_bytes(members, columns, target)
    fits = what_would_fit(cfg, members, columns, target, room - llm)
    return SaeDistError(in_words(cfg, held, llm, room, fits, first_line(error)[:200]))


def widths(cfg: Resolved, facts: LlmFacts | None) -> tuple[int, int]:
    """Return the width of a row that a dictionary reads, and of what it reconstructs."""
    if facts is not None:
        one = facts.only(facts.hook, facts.target_hook)
        return one.columns, one.widths[-1]
    if cfg.activations.width is not None:
        return cfg.activations.width, cfg.activations.width
    width = open_array(cfg.activations.source_path, cfg.activations.key).shape[1]
    return width, width


def in_words(cfg: Resolved, held: int, llm: int, room: int, fits: list[str], reason: str) -> str:
    """Write the line.

    Args:
        held: bytes of the dictionaries, their optimizers and waiting activations.
        llm: bytes of the language model.
        room: bytes of memory that this rank has.
        fits: overrides, each of which alone would fit.
    """
    parts = f"{gib(held, 2)} of dictionary, optimizer and shuffle buffer"
    if llm:
        parts += f" and {gib(llm, 2)} of language model"
    half = f"batch={cfg.batch // 2}, or shuffle.chunk_rows={max(cfg.shuffle.chunk_rows // 2, 1)}"
    would = (
        f"what would fit: {' or '.join(fits)}"
        if fits
        else f"what a step holds for a while is less with {half}"
    )
    return f"out of memory: this rank holds {parts} of {gib(room, 2)}; {would} ({reason})"
