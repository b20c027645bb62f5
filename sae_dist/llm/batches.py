"""The batches in which a chunk goes through the LLM."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sae_dist.core.moving import moved
from sae_dist.core.types import TokenChunk

TRIM_BELOW = 0.75


def full_and_rest(chunk: TokenChunk) -> Iterator[tuple[Tensor, ...]]:
    """Yield ids, segments, positions and kept places of a chunk.

    The last sequence is a batch of its own, without its padding, if much of it is padding.
    """
    tensors = (chunk.ids_NS, chunk.segment_NS, chunk.position_NS, chunk.keep_NS)
    last = int((chunk.segment_NS[-1] > 0).sum())
    if last > TRIM_BELOW * chunk.ids_NS.shape[1]:
        yield tensors
        return
    if len(chunk.ids_NS) > 1:
        yield tuple(each[:-1] for each in tensors)
    yield tuple(each[-1:, :last] for each in tensors)


def by_length(chunk: TokenChunk) -> Iterator[tuple[Tensor, ...]]:
    """Yield ids, segments, positions, kept places, and the place of each kept token in reading order.

    For sequences of one document each: those of similar length share a batch, so that little is padding.
    """
    tensors = (chunk.ids_NS, chunk.segment_NS, chunk.position_NS, chunk.keep_NS)
    length_N = (chunk.segment_NS > 0).sum(1)
    place_NS = torch.arange(chunk.keep_NS.numel()).view_as(chunk.keep_NS)
    order = length_N.argsort(descending=True, stable=True).tolist()
    while order:
        longest = int(length_N[order[0]])
        rows = [row for row in order if length_N[row] >= TRIM_BELOW * longest]
        order = order[len(rows) :]
        keep_NS = chunk.keep_NS[rows, :longest]
        yield *(each[rows, :longest] for each in tensors), place_NS[rows, :longest][keep_NS]


def in_reading_order(rows_RD: Tensor, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Put the rows of the batches that `by_length` made into reading order."""
    return rows_RD[moved(torch.cat([batch[-1] for batch in batches]).argsort(), rows_RD.device)]


def padding_share(chunk: TokenChunk, *, packed: bool) -> float:
    """Return which share of what the LLM computes for a chunk is padding."""
    batches = list(full_and_rest(chunk) if packed else by_length(chunk))
    computed = sum(batch[0].numel() for batch in batches)
    return 1 - int((chunk.segment_NS > 0).sum()) / computed
