"""A part of `sae-dist bench stream`: a producer's work beside the bare forward of transformers."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from sae_dist.bench.peers.step_io import seconds_of
from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig
from sae_dist.core.types import TokenChunk
from sae_dist.llm.batches import full_and_rest
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.masks import packed_masks
from sae_dist.train.sources import build_source

WARMUP = 3


def time_capture(cfg: RunConfig, device: torch.device, chunks: int) -> dict[str, list[float]]:
    """Time each chunk in three ways, in turn; return the seconds of each:

    forward     the bare truncated model, its masks made beforehand
    capture     the same tokens through ours: masks, hooks, norms, choice of rows
    tokens      reading, tokenising and packing
    """
    facts, _ = llm_facts(cfg.llm, cfg.hook, cfg.target_hook)
    source = build_source(resolve(cfg, facts, facts.width), facts, device)
    assert isinstance(source, LlmChunkSource)
    reading: Any = source.tokens.open(0, None)
    found: dict[str, list[float]] = {"forward": [], "capture": [], "tokens": []}
    for turn in range(WARMUP + chunks):
        before = time.perf_counter()
        chunk = next(islice(reading, 1))
        times = {"tokens": time.perf_counter() - before}
        acts: dict[str, Callable[[], object]] = {
            "forward": bare_forward(source, chunk),
            "capture": lambda chunk=chunk: source.compute(chunk),  # type: ignore[misc]
        }
        # Which goes first changes, so that neither always finds the other's memory warm.
        for name in sorted(acts, reverse=bool(turn % 2)):
            times[name] = seconds_of(acts[name], device)
        if turn >= WARMUP:
            for name, taken in times.items():
                found[name].append(taken)
    return found


def bare_forward(source: LlmChunkSource, chunk: TokenChunk) -> Callable[[], None]:
    """Return the forward of a chunk as transformers runs it, on inputs that are ready."""
    llm = source.llm
    batches = []
    for batch in full_and_rest(chunk):
        ids, segment, position = (each.to(llm.device) for each in batch[:3])
        masks = packed_masks(segment, position, llm.config, causal=llm.facts.causal, dtype=llm.dtype)
        positions = position + llm.first_position
        batches.append({"input_ids": ids, "attention_mask": masks, "position_ids": positions})

    @torch.no_grad()
    def forward() -> None:
        for inputs in batches:
            llm.base(**inputs)

    return forward
