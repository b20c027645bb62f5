"""Activation chunks from the LLM: exact in number, without rows of outlying norm."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.types import ActivationChunk, Position, TokenChunk
from sae_dist.llm.frozen import FrozenLlm


class Tokens(Protocol):
    """Where token chunks come from."""

    def open(self, lane: int, start: Position | None) -> Iterator[TokenChunk]:
        """Chunks of a lane, from `start` on."""
        ...


def spare_rows(rows: int, max_norm_multiple: float | None) -> int:
    """Extra activations computed per chunk, to stand in for rows of outlying norm."""
    return 0 if max_norm_multiple is None else -(-rows // 64)


class LlmChunkSource:
    """Runs token chunks of rows + spare kept tokens through the LLM, one at a time.

    Args:
        rows: activations per chunk.
        spare: activations at the end of a chunk that stand in for excluded ones, else go unused.
        max_norm_multiple: rows whose activation is longer than this multiple of the chunk's median norm are
            excluded, whatever a transcoder's target is, and in a grid of hooks if they are so at any of them;
            None: none.
        wire: dtype that rows are given in, whether they travel to another rank or not; None: the LLM's.
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
        """Chunks of `lane` from `start` on, each a function of its token chunk alone.

        Raises:
            DataError: an activation is not finite.
        """
        for chunk in self.tokens.open(lane, start):
            yield self.compute(chunk)

    def idle(self) -> None:
        """Take part in what other ranks of this LLM's group compute, without a chunk."""
        self.llm.idle()

    def compute(self, chunk: TokenChunk) -> ActivationChunk:
        """The rows of one token chunk."""
        x_RD = self.llm.activations(chunk)
        facts = self.llm.facts
        norms = [_norms(part) for part in x_RD.split(facts.widths, 1)]
        for hook, norm_R in zip(facts.hooks, norms, strict=True):
            if not torch.isfinite(norm_R).all():
                raise DataError(
                    f"the activations at {hook} of chunk {chunk.number} (lane {chunk.lane}) are not finite; "
                    "try llm.dtype=float32"
                )
        # A transcoder's target has no say: it comes last of two, and a grid of hooks has none.
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
        )

    def _choose(self, norms: list[Tensor]) -> tuple[Tensor, int, int]:
        """Rows to give, how many before the last of them were excluded, and how many stand twice."""
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
    """In float32 at least: squares of 16-bit numbers overflow."""
    return torch.linalg.vector_norm(x_RD, dim=-1, dtype=torch.promote_types(x_RD.dtype, torch.float32))
