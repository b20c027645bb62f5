"""Activation chunks from the LLM: an exact number of rows each, without rows of outlying norm."""

import math
from collections.abc import Callable, Iterator
from itertools import compress
from typing import Protocol

import torch
from torch import Tensor

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.moving import moved
from sae_dist.core.types import ActivationChunk, Position, TokenChunk
from sae_dist.llm.frozen import FrozenLlm


class Tokens(Protocol):
    """The interface of a source of token chunks."""

    def open(self, lane: int, start: Position | None) -> Iterator[TokenChunk]:
        """Yield the chunks of a lane from position `start` on (None: from the beginning)."""
        ...


def spare_rows(rows: int, tokens: TokensConfig) -> int:
    """Return how many extra activations a chunk computes, as replacements for rows of outlying norm."""
    return 0 if tokens.max_norm_multiple is None else math.ceil(rows * tokens.spare)


class LlmChunkSource:
    """A source of activation chunks: runs token chunks of rows + spare kept tokens through the LLM.

    Args:
        rows: activations per chunk.
        spare: extra activations at the end of a chunk, which replace excluded ones and are otherwise unused.
        max_norm_multiple: a row is excluded if its activation is longer than this multiple of the chunk's
            median norm. Targets of transcoders are not looked at; with several hooks, a row is excluded
            everywhere if it is an outlier at any of them. None: no row is excluded.
        wire: dtype of the rows, whether they travel to another rank or not; None: the LLM's.

    Attributes:
        chose: called with each token chunk, and which of its kept tokens are the rows, none twice.
    """

    def __init__(
        self,
        llm: FrozenLlm,
        tokens: Tokens,
        *,
        rows: int,
        spare: int,
        max_norm_multiple: float | None,
        wire: torch.dtype | None = None,
    ):
        if max_norm_multiple is not None and not max_norm_multiple > 1:
            raise ConfigError(
                f"tokens.max_norm_multiple={max_norm_multiple} would exclude ordinary activations; "
                "use a number above 1, or null"
            )
        self.llm, self.tokens = llm, tokens
        self.rows, self.spare, self.max_norm_multiple = rows, spare, max_norm_multiple
        self.width = llm.facts.columns
        self.wire = wire or llm.dtype
        self.chose: Callable[[TokenChunk, Tensor], None] | None = None

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane from position `start` on, each a function of its token chunk alone.

        Raises:
            DataError: an activation is not finite.
        """
        for chunk in self.tokens.open(lane, start):
            yield self.compute(chunk)

    def idle(self) -> None:
        """Join one round of forwards of this LLM's group without a chunk of one's own."""
        self.llm.idle()

    def compute(self, chunk: TokenChunk) -> ActivationChunk:
        """Compute the activation chunk of one token chunk.

        Raises:
            DataError: an activation is not finite.
        """
        x_RD = self.llm.activations(chunk)
        facts = self.llm.facts
        norms = [_norms(part) for part in x_RD.split(facts.widths, 1)]
        # A transcoder's target does not exclude rows.
        index_R, found = self._choose(list(compress(norms, facts.are_sources)))
        # One wait for the device in each chunk, for all that the host must know of it.
        fits, last, *finite = torch.stack([*found, *(torch.isfinite(each).all() for each in norms)]).tolist()
        for hook, is_finite in zip(facts.hooks, finite, strict=True):
            if not is_finite:
                raise DataError(
                    f"the activations at {hook} of chunk {chunk.number} (lane {chunk.lane}) are not finite; "
                    "try llm.dtype=float32"
                )
        repeated = max(self.rows - fits, 0)
        ids_R = moved(chunk.ids_NS[chunk.keep_NS], x_RD.device)
        if self.chose is not None:
            self.chose(chunk, index_R[: self.rows - repeated].cpu())
        return ActivationChunk(
            number=chunk.number,
            lane=chunk.lane,
            rows_RD=x_RD[index_R].to(self.wire),
            ids_R=ids_R[index_R],
            start=chunk.start,
            excluded=len(x_RD) - fits if repeated else last + 1 - self.rows,
            repeated=repeated,
            left_out=chunk.left_out,
        )

    def _choose(self, norms: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Choose the rows of a chunk by their norms at each hook.

        Those that fit, in order; if they are too few, again from the first on.

        Returns:
            The row numbers [rows], and on the device how many rows fit, and the last number; int64 each.
        """
        order_R = torch.arange(self.rows, device=norms[0].device)
        if self.max_norm_multiple is None:
            # Fewer only in the last chunk of a short text.
            there = min(self.rows, len(norms[0]))
            return order_R % there, [torch.full_like(order_R[0], there), order_R[there - 1]]
        fits = [norm_R <= self.max_norm_multiple * norm_R.median() for norm_R in norms]
        fit = torch.stack(fits).all(0)
        num_fit = fit.sum()
        # Not by `nonzero`, for whose size the host would wait.
        index_R = (~fit).to(torch.uint8).argsort(stable=True)[order_R % num_fit.clamp(min=1)]
        return index_R, [num_fit, index_R[-1]]


def _norms(x_RD: Tensor) -> Tensor:
    """Return the norm of each row [R], in float32 at least: squares of 16-bit numbers overflow."""
    return torch.linalg.vector_norm(x_RD, dim=-1, dtype=torch.promote_types(x_RD.dtype, torch.float32))
