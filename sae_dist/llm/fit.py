"""Memory checks from facts alone: do an LLM's weights fit where they are to be held."""

import math
import os

import psutil
import torch

from sae_dist.config.rules.sharding import world_size_of
from sae_dist.config.run import Resolved
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import gib
from sae_dist.core.types import LlmFacts

USABLE = 0.9  # of the memory: activations, masks and the dictionary need some


def check_memory(cfg: Resolved, facts: LlmFacts, ranks_here: int | None) -> None:
    """Compare the weights that training loads with the memory of a GPU, or of this machine.

    Args:
        ranks_here: ranks that a launcher started on this machine; None: all will run here.

    Raises:
        ConfigError: they do not fit; the message names the sharding that would.
    """
    weights, size = weights_bytes(facts, cfg.llm.dtype), cfg.llm.shard_size
    topology, memory = cfg.topology, memory_bytes(cfg.device)
    copies, where = 1.0, "a GPU"
    if cfg.device == "cpu":
        world = world_size_of(cfg)
        copies = (topology.producers or world) * min(1.0, (ranks_here or world) / world)
        where, size = "this machine", 1 if ranks_here is None else size
    if cfg.llm.offload and cfg.device != "cpu" or copies * weights / size <= USABLE * memory:
        return
    count = f"{copies:.3g} x " if copies > 1 else ""
    raise ConfigError(
        f"llm.name={cfg.llm.name} needs {count}{gib(weights)} for its weights up to {facts.hooks[-1]} in "
        f"{cfg.llm.dtype}, and {where} has {gib(memory)}; {_fix(cfg, facts, weights, memory)}"
    )


def why_not_whole(facts: LlmFacts, dtype: str, device: torch.device) -> str | None:
    """Explain why one process cannot hold the whole model, for evaluation; None: it can."""
    weights, memory = weights_bytes(facts, dtype, whole=True), memory_bytes(device.type)
    if weights <= USABLE * memory:
        return None
    return (
        f"evaluation holds the whole model in one process: {gib(weights)} in {dtype}, and there are "
        f"{gib(memory)}"
    )


def why_not_beside(facts: LlmFacts, dtype: torch.dtype, device: torch.device) -> str | None:
    """Explain why the whole base model does not fit now into the memory that is free; None: it does."""
    weights = facts.whole_parameters * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if weights <= USABLE * free:
        return None
    return f"it needs {gib(weights)}, and {gib(free)} are free"


def weights_bytes(facts: LlmFacts, dtype: str, *, whole: bool = False) -> int:
    """Return the bytes of the layers up to the last hook, or of the whole model with its head."""
    numbers = facts.whole_parameters if whole else facts.parameters
    return numbers * getattr(torch, dtype).itemsize


def memory_bytes(device: str) -> int:
    """Return the bytes of memory of the first GPU, or of this machine."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _fix(cfg: Resolved, facts: LlmFacts, weights: int, memory: int) -> str:
    if cfg.device == "cpu" and weights <= USABLE * memory:
        size = max(2, cfg.llm.shard_size)
        return f"hold it once: llm.shard=zero3 llm.shard_size={size} topology.producers=1"
    needed = math.ceil(weights / (USABLE * memory))
    over = " over that many machines" if cfg.device == "cpu" else ""
    split = next((each for each in facts.tp_sizes or () if each >= needed), None)
    tp = f", or llm.shard=tp llm.shard_size={split}" if split else ""
    return f"use llm.shard=zero3 llm.shard_size={needed} topology.producers=1{tp}{over}"
