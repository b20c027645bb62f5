"""Measuring the codes of a dictionary on text: how often each latent fires, and how strongly.

Letters: as core.types.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sae_dist.config.run import Single
from sae_dist.core.errors import ConfigError
from sae_dist.core.progress import reported
from sae_dist.core.types import TokenChunk
from sae_dist.export.statistics import CodeStatistics, CodeSums
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.forward import Forward
from sae_dist.interpret.model import LanguageModel, as_model, check_same
from sae_dist.interpret.session import Session, rows_at
from sae_dist.llm.capture import LlmChunkSource, spare_rows
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.hooks import Stop
from sae_dist.tokens.source import held_out_tokens

CONTEXT = 1024
"""The tokens of a sequence where neither the dictionary nor the model says how many."""


def measure(
    d: Dictionary,
    lm: Any,
    *,
    tokens: int = 100_000,
    texts: Sequence[Any] | None = None,
    force: bool = False,
) -> CodeStatistics:
    """Measure the codes of every latent on a text; doses such as "4x" and `rate` then count by them.

    Args:
        tokens: at most so many are read, special ones not counted.
        texts: texts, messages, or token ids, each read alone, from its beginning in every context; None: the
            held-out text of the dictionary's run, as its evaluation reads it.
        force: take a model of another name than the dictionary's.

    Raises:
        ConfigError: `texts` is needed and missing, or has no token that counts; or the model is not the
            dictionary's.
    """
    lm = as_model(lm)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"tokens={tokens} must be a whole number, at least 1")
    check_same(d, lm, force)
    run = d.place.run
    sums = CodeSums(d.num_latents, d.device)
    with torch.no_grad():
        if texts is not None:
            seen = _alone(d, lm, _documents(d, lm, texts), sums, tokens, force)
        elif run is None or not run.has_llm:
            raise ConfigError(
                f"{d.place.folder} has no text of its own; give some: d.measure(lm, texts=[...])"
            )
        else:
            seen = _held_out(d, run, lm, sums, tokens)
    if not seen:
        what = "the run's held-out text is shorter than a chunk" if texts is None else "texts has no token"
        raise ConfigError(f"d.measure: {what} beside special ones; give longer texts=[...]")
    d.place.measured = sums.statistics()
    return d.place.measured


def _held_out(d: Dictionary, run: Single, lm: LanguageModel, sums: CodeSums, tokens: int) -> int:
    """Add the codes of the run's held-out text; return on how many rows."""
    # A file never grants that code is run: what the model brings along was granted when it was loaded.
    own = lm.facts if lm.facts is not None and lm.facts.name == run.llm.name else None
    facts = own or llm_facts(replace(run.llm, trust_remote_code=False), run.hook, run.target_hook)[0]
    try:
        check_same(d, lm, force=False)
    except ConfigError:
        raise ConfigError(
            f"{d.place.folder} has its text as tokens of {facts.name}, and this model is {lm.name}; give a "
            "text: d.measure(lm, texts=[...], force=True)"
        ) from None
    rows = run.shuffle.chunk_rows
    spare = spare_rows(rows, run.tokens)
    source = held_out_tokens(run.tokens, facts, seed=run.seed, rows=rows + spare)
    if lm.facts is None:  # the user's own model, which is left as it is
        return _alone(d, lm, _segments(source.open(0, None)), sums, tokens)
    chunks = LlmChunkSource(
        FrozenLlm(lm.model, facts, with_head=True),
        source,
        rows=rows,
        spare=spare,
        max_norm_multiple=run.tokens.max_norm_multiple,
    )
    seen = 0
    each_RD = (chunk.rows_RD for chunk in chunks.open(0, None))
    for rows_RD in reported(each_RD, len, tokens, "tokens measured"):
        x_BD = rows_RD[: tokens - seen, : d.width].to(d.device)
        sums.add(d.encode(x_BD).plain())
        seen += len(x_BD)
        if seen >= tokens:
            break
    return seen


def _alone(
    d: Dictionary,
    lm: LanguageModel,
    documents: Iterator[Tensor],
    sums: CodeSums,
    tokens: int,
    force: bool = False,
) -> int:
    """Add the codes of documents [S] that are read one by one; return on how many rows."""
    with _Counting(d, lm, sums, tokens, force) as counting:
        for ids_S in documents:
            with suppress(Stop):
                lm.reader(**lm.as_trained(ids_S.to(lm.device)))
            if counting.left <= 0:
                break
    return tokens - counting.left


class _Counting(Session):
    """A model whose codes at tokens that are not special are counted; nothing after the hook is computed."""

    def __init__(self, d: Dictionary, lm: LanguageModel, sums: CodeSums, left: int, force: bool):
        super().__init__(d, lm, force)
        self._sums, self.left = sums, left

    def act(self, forward: Forward, x_NSD: Tensor, y_NSE: Tensor) -> Tensor:
        """Count the codes, and end the forward; see `Session.act`."""
        x_BD = rows_at(x_NSD, forward.ordinary())[: self.left].to(self.dictionary.device)
        if len(x_BD):
            self._sums.add(self.dictionary.encode(x_BD).plain())
        self.left -= len(x_BD)
        raise Stop


def _documents(d: Dictionary, lm: LanguageModel, texts: Sequence[Any]) -> Iterator[Tensor]:
    """Yield token ids [S] of texts, in pieces of the context, special tokens around each."""
    own = getattr(lm.facts, "context", None) or getattr(lm.model.config, "max_position_embeddings", None)
    context = min(d.place.context or CONTEXT, own or CONTEXT)
    first, last = lm.prefix, lm.suffix
    for text in [texts] if isinstance(texts, str) else texts:
        ids_S = lm.ids(text)
        given = ids_S.tolist()
        if len(given) <= context:
            yield from [ids_S] if given else []
            continue
        given = given[len(first) :] if tuple(given[: len(first)]) == first else given
        given = given[: len(given) - len(last)] if last and tuple(given[-len(last) :]) == last else given
        step = context - len(first) - len(last)
        for start in range(0, len(given), step):
            yield ids_S.new_tensor([*first, *given[start : start + step], *last])


def _segments(chunks: Iterator[TokenChunk]) -> Iterator[Tensor]:
    """Yield the token ids [S] of each document in chunks, special tokens included."""
    for chunk in chunks:
        for ids_S, segment_S in zip(chunk.ids_NS, chunk.segment_NS, strict=True):
            for number in range(1, int(segment_S.max()) + 1):
                yield ids_S[segment_S == number]
