"""Rules of evaluation during training, and of models with random weights."""

from collections.abc import Iterator

from sae_dist.config.needs import MASTER_BYTES
from sae_dist.config.run import RunConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import GIB

MOST_BYTES = GIB
"""Room for the held-out activations that the consumers of a group keep on the host, together."""


def check_held_out(cfg: RunConfig, columns: int) -> None:
    """Check that the activations for evaluation in training fit into the memory that is reserved for them.

    Args:
        columns: width of a row.

    Raises:
        ConfigError: they do not.
    """
    row, ce = columns * MASTER_BYTES[cfg.precision], cfg.eval.ce or 0
    if cfg.eval.every is not None and (cfg.eval.rows + ce) * row > MOST_BYTES:
        raise ConfigError(
            f"eval.rows={cfg.eval.rows} and eval.ce={ce} rows of {columns} numbers take more than the "
            f"{MOST_BYTES / GIB:.0f} GiB for evaluation in training; use at most {MOST_BYTES // row} rows"
        )


def evaluation_problems(cfg: RunConfig) -> Iterator[str]:
    """Yield settings of `eval` that cannot work or would not be read."""
    every, ce = cfg.eval.every, cfg.eval.ce
    if cfg.llm.random_init and cfg.llm.shard != "none":
        yield f"llm.random_init=true is not possible with llm.shard={cfg.llm.shard}; use llm.shard=none"
    if ce is not None and every is None:
        yield f"eval.ce={ce} is read by evaluations in training; give eval.every, or use eval.ce_tokens"
    if every is None:
        return
    if every < cfg.batch:
        yield f"eval.every={every} is less than one step of batch={cfg.batch}; use at least that"
    if cfg.has_llm and cfg.llm.shard != "none":
        yield (
            f"eval.every={every} needs the LLM in one process for a moment, which llm.shard={cfg.llm.shard} "
            "has not; leave it out, and evaluate afterwards"
        )
    if ce is not None and not cfg.has_llm:
        yield (
            f"eval.ce={ce} needs a language model; with activations.kind={cfg.activations.kind} leave it out"
        )
