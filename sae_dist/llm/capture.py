"""Activation chunks from the LLM: an exact number of rows each, without rows of outlying norm."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
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
            median norm. A transcoder's target is not looked at; with several hooks, a row is excluded
            everywhere if it is an outlier at any of them. None: no row is excluded.
        wire: dtype of the rows, whether they travel to another rank or not; None: the LLM's.
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
        for hook, norm_R in zip(facts.hooks, norms, strict=True):
            if not torch.isfinite(norm_R).all():
                raise DataError(
                    f"the activations at {hook} of chunk {chunk.number} (lane {chunk.lane}) are not finite; "
                    "try llm.dtype=float32"
                )
        # A transcoder's target does not exclude rows; it is the last of two. A grid of hooks has no target.
        inputs = norms[:1] if facts.target_hook else norms
        index_R, excluded, repeated = self._choose(inputs)
        ids_R = chunk.ids_NS[chunk.keep_NS].to(x_RD.device)
        return ActivationChunk(
            number=chunk.number,
            lane=chunk.lane,
            rows_RD=x_RD[index_R].to(self.wire),
            ids_R=ids_R[index_R],
            start=chunk.start,
            excluded=excluded,
            repeated=repeated,
            left_out=chunk.left_out,
        )

    def _choose(self, norms: list[Tensor]) -> tuple[Tensor, int, int]:
        """Choose the rows of a chunk by their norms at each hook.

        Returns:
            The row numbers [rows], how many rows before the last of them were excluded, and how many rows
            had to be repeated because too many were excluded.
        """
        rows, device = len(norms[0]), norms[0].device
        if self.max_norm_multiple is None:
            return torch.arange(self.rows, device=device), 0, 0
        fits = [norm_R <= self.max_norm_multiple * norm_R.median() for norm_R in norms]
        fit = torch.nonzero(torch.stack(fits).all(0)).squeeze(1)
        repeated = max(self.rows - len(fit), 0)
        if repeated:
            index_R = fit[torch.arange(self.rows, device=fit.device) % len(fit)]
            return index_R, rows - len(fit), repeated
        index_R = fit[: self.rows]
        return index_R, int(index_R[-1]) + 1 - self.rows, 0


def _norms(x_RD: Tensor) -> Tensor:
    """Return the norm of each row [R], in float32 at least: squares of 16-bit numbers overflow."""
    return torch.linalg.vector_norm(x_RD, dim=-1, dtype=torch.promote_types(x_RD.dtype, torch.float32))
