"""Held-out activations with the text that they belong to."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sae_dist.config.run import Resolved
from sae_dist.core.types import ChunkSource, LlmFacts, TokenChunk
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import held_out_tokens


@dataclass(frozen=True)
class Text:
    """The tokens of one chunk, sequence after sequence [T]: ids, and the number of each token's segment."""

    ids_T: np.ndarray
    segment_T: np.ndarray

    @staticmethod
    def of(chunk: TokenChunk) -> "Text":
        """Flatten a chunk; segments, numbered within a sequence there, get different numbers."""
        segment_NS = chunk.segment_NS.numpy()
        first_N1 = np.arange(len(segment_NS))[:, None] * (int(segment_NS.max()) + 1)
        return Text(chunk.ids_NS.numpy().ravel(), (segment_NS + first_N1).ravel())


@dataclass(frozen=True)
class Read:
    """Rows of one chunk, with their text.

    Attributes:
        x_RD: activations; for a transcoder, its inputs.
        place_R: which of the text's tokens each row belongs to; without text the number of the row.
        text: None if activations have no text.
    """

    x_RD: Tensor
    place_R: np.ndarray
    text: Text | None


def read_text(cfg: Resolved, facts: LlmFacts, llm: FrozenLlm) -> Iterator[Read]:
    """Yield held-out tokens, once, in the order of the evaluation, without rows of outlying norm."""
    source = held_out_tokens(cfg.tokens, facts, seed=cfg.seed, rows=cfg.shuffle.chunk_rows)
    for chunk in source.open(0, None):
        x_RD = llm.activations(chunk)[:, : facts.width].to(torch.promote_types(llm.dtype, torch.float32))
        place_R = chunk.keep_NS.flatten().nonzero().squeeze(1).numpy()
        if cfg.tokens.max_norm_multiple is not None:
            norm_R = x_RD.norm(dim=1)
            fits_R = norm_R <= cfg.tokens.max_norm_multiple * norm_R.median()
            x_RD, place_R = x_RD[fits_R], place_R[fits_R.cpu().numpy()]
        yield Read(x_RD, place_R, Text.of(chunk))


def read_rows_of(source: ChunkSource, device: torch.device) -> Iterator[Read]:
    """Yield held-out rows that have no text: of a file, or synthetic."""
    for chunk in source.open(0, None):
        yield Read(chunk.rows_RD.to(device), chunk.ids_R.cpu().numpy(), None)


def first(reads: Iterator[Read], tokens: int) -> Iterator[Read]:
    """Yield the first so many rows, as the evaluation counts them; the last chunk is cut."""
    seen = 0
    for read in reads:
        left = tokens - seen
        seen += len(read.x_RD)
        yield read if seen <= tokens else replace(read, x_RD=read.x_RD[:left], place_R=read.place_R[:left])
        if seen >= tokens:
            return
