"""The subject of an evaluation: a dictionary, its LLM (loaded when needed), and held-out activations."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sae_dist.config.run import Resolved, Single
from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import ActivationChunk, ChunkSource, LlmFacts
from sae_dist.evaluation.synthetic import held_out
from sae_dist.export.exported import Encode, ExportedSae
from sae_dist.llm.capture import LlmChunkSource, spare_rows
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.whole import why_not_held
from sae_dist.tokens.encoder import Encoder
from sae_dist.tokens.source import held_out_tokens
from sae_dist.transport.file import FileChunkSource, open_array


def llm_rows(cfg: Resolved, tokens: TokensConfig, llm: FrozenLlm) -> ChunkSource:
    """Open the held-out activations of a text, without rows of outlying norm."""
    rows, multiple = cfg.shuffle.chunk_rows, cfg.tokens.max_norm_multiple
    spare = spare_rows(rows, tokens)
    source = held_out_tokens(tokens, llm.facts, seed=cfg.seed, rows=rows + spare)
    return LlmChunkSource(llm, source, rows=rows, spare=spare, max_norm_multiple=multiple)


def file_rows(cfg: Resolved) -> ChunkSource:
    """Open the held-out rows of an activation file."""
    array = open_array(cfg.activations.path or "", cfg.activations.key)
    rows, multiple = cfg.shuffle.chunk_rows, cfg.tokens.max_norm_multiple
    return FileChunkSource(
        array, lanes=1, rows=rows, seed=0, held_out=True, dtype=torch.float32, max_norm_multiple=multiple
    )


@dataclasses.dataclass
class Subject:
    """A run's dictionary on the device, with its config and folder."""

    cfg: Single
    folder: Path
    sae: ExportedSae
    encode: Encode
    device: torch.device

    @cached_property
    def facts(self) -> LlmFacts:
        """The facts of the run's LLM, if it has one.

        Raises:
            ConfigError: the LLM is not on this machine.
        """
        return llm_facts(self.cfg.llm, self.cfg.hook, self.cfg.target_hook)[0]

    @cached_property
    def llm(self) -> FrozenLlm:
        """The run's LLM up to the hook."""
        return self.load(random_init=self.cfg.llm.random_init)

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer of the run's LLM."""
        return Encoder(self.facts)

    def load(self, *, random_init: bool) -> FrozenLlm:
        """Load the LLM up to the hook, with its own weights or random ones."""
        cfg = dataclasses.replace(self.cfg.llm, compile=False, random_init=random_init)
        dtype = getattr(torch, cfg.dtype)
        return FrozenLlm.load(cfg, self.facts, device=self.device, dtype=dtype, with_head=False)

    def why_no_llm(self) -> str | None:
        """Explain why numbers that need an LLM cannot be computed; None: they can."""
        if not self.cfg.has_llm:
            return f"activations.kind={self.cfg.activations.kind}: there is no LLM"
        try:
            facts = self.facts
        except ConfigError as error:
            if not self.cfg.reads_cache:
                raise
            # Training from a cache does not need the LLM.
            return f"the cache's language model is not on this machine: {error}"
        return why_not_held(facts, self.cfg.llm.dtype, self.device)

    def chunks(self, llm: FrozenLlm | None = None) -> Iterator[ActivationChunk]:
        """Yield held-out chunks, computed by this run's LLM or by another."""
        if self.cfg.is_synthetic:
            return held_out(self.cfg).open(0, None)
        if self.cfg.reads_file:
            return file_rows(self.cfg).open(0, None)
        return llm_rows(self.cfg, self.cfg.tokens, llm or self.llm).open(0, None)

    def first_rows(self, most: int, llm: FrozenLlm | None = None) -> Tensor:
        """Return the first held-out rows, on the host, [N, columns]."""
        parts, found = [], 0
        for chunk in self.chunks(llm):
            parts.append(chunk.rows_RD[: most - found].float().cpu())
            found += len(parts[-1])
            if found >= most:
                break
        return torch.cat(parts)
