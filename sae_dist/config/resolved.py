"""The sections of a run's config once every choice is made: counts are numbers, open fields have values."""

from dataclasses import dataclass

from sae_dist.config.sections import (
    CheckpointConfig,
    EvalConfig,
    LlmConfig,
    OptimConfig,
    SaeConfig,
    ShuffleConfig,
)


@dataclass(kw_only=True)
class ResolvedLlm(LlmConfig):
    """The frozen language model, with a dtype."""

    dtype: str


@dataclass(kw_only=True)
class ResolvedShuffle(ShuffleConfig):
    """Lanes, and blocks that have a size."""

    lanes: int
    block_chunks: int


@dataclass(kw_only=True)
class ResolvedSae(SaeConfig):
    """The dictionary, with a number of latents."""

    num_latents: int
    aux_k: int
    dead_after: int
    encoder_scale: float


@dataclass(kw_only=True)
class ResolvedOptim(OptimConfig):
    """The optimizer; `lr` stays open until training fills it in by its law."""

    warmup: float


@dataclass(kw_only=True)
class ResolvedCheckpoint(CheckpointConfig):
    """The times of checkpoints, as numbers of tokens."""

    every: int | None
    keep_every: int | None


@dataclass(kw_only=True)
class ResolvedEval(EvalConfig):
    """The extent of evaluations, as numbers of tokens and rows."""

    tokens: int
    ce_tokens: int
    every: int | None
    rows: int
    ce: int | None
