"""Activations at chosen tokens of chosen texts, each text by itself.

Letters: as core.types; R chosen tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from sae_dist.core.types import LlmFacts, TokenChunk
from sae_dist.llm.frozen import FrozenLlm

SEQUENCES = 16


@dataclass(frozen=True)
class Passage:
    """A text as token ids without special tokens, at most `room(...)` of them, and the places to read."""

    ids: np.ndarray
    places: np.ndarray


def room(facts: LlmFacts, context: int) -> int:
    """Return how many tokens of a text fit between the special ones."""
    return context - len(facts.prefix) - len(facts.suffix)


def rows_at(llm: FrozenLlm, passages: Sequence[Passage]) -> Tensor:
    """Compute the activations at the places of all passages, in order, on the host, [R, columns]."""
    parts = [llm.activations(chunk).cpu() for chunk in _chunks(passages, llm.facts)]
    return torch.cat(parts) if parts else torch.zeros(0, llm.facts.columns)


def _chunks(passages: Iterable[Passage], facts: LlmFacts) -> Iterator[TokenChunk]:
    left = iter(passages)
    while group := list(islice(left, SEQUENCES)):
        before, special = len(facts.prefix), len(facts.prefix) + len(facts.suffix)
        shape = (len(group), max(len(each.ids) for each in group) + special)
        ids, segment = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        keep = np.zeros(shape, bool)
        for number, each in enumerate(group):
            whole = np.concatenate([facts.prefix, each.ids, facts.suffix]).astype(np.int64)
            ids[number, : len(whole)] = whole
            segment[number, : len(whole)] = 1
            keep[number, before + each.places] = True
        position = np.where(segment > 0, np.arange(shape[1]), 0)
        yield TokenChunk(
            number=0,
            lane=0,
            ids_NS=torch.from_numpy(ids),
            segment_NS=torch.from_numpy(segment),
            position_NS=torch.from_numpy(position),
            keep_NS=torch.from_numpy(keep),
            document_NS=torch.from_numpy(np.where(segment > 0, 0, -1)),
            start={"chunk": 0},
        )
