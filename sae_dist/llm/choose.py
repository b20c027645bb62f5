"""The choice between several documents in a sequence and one, by the model's own weights."""

from dataclasses import replace

import torch

from sae_dist.config.sections import LlmConfig
from sae_dist.core.types import LlmFacts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.proof import MixedDocuments

SMALL_PARAMETERS = 200_000_000


def choose_packing(cfg: LlmConfig, facts: LlmFacts) -> tuple[LlmFacts, str | None]:
    """Give each document a sequence of its own where the model, run on the CPU, mixes packed ones.

    That is tried with models that are small up to the last hook: those that mix documents although they take
    a mask are small. A larger one that does is refused when its ranks load it.

    Returns:
        The facts, and a line that says why they changed; None: they did not.

    Raises:
        ConfigError: the weights do not load, or the model mixes documents with padding, too.
    """
    if cfg.packed is not None or not facts.packed or facts.parameters > SMALL_PARAMETERS:
        return facts, None
    plain = replace(cfg, shard="none", compile=False, random_init=False)
    alone = replace(facts, packed=False)
    try:
        _load(plain, facts)
    except MixedDocuments:
        _load(plain, alone)
        return alone, f"one document in a sequence, since {cfg.name} mixes those that share one"
    return facts, None


def _load(cfg: LlmConfig, facts: LlmFacts) -> None:
    FrozenLlm.load(cfg, facts, device=torch.device("cpu"), dtype=torch.float32, with_head=False)
