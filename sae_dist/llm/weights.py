"""Weights of a frozen LLM: read up to the last layer that is needed, whole, random, or split over a team."""

from typing import Any

import torch

from sae_dist.config.sections import LlmConfig
from sae_dist.core.types import LlmFacts
from sae_dist.distributed.collectives import Axis
from sae_dist.llm.architecture import without_cache
from sae_dist.llm.cut import class_of, cut_class
from sae_dist.llm.hub import loading
from sae_dist.llm.random_init import random_model
from sae_dist.llm.tensor_parallel import load_split
from sae_dist.llm.zero3 import Partitioned, load_partitioned


def load_weights(
    cfg: LlmConfig,
    facts: LlmFacts,
    *,
    device: torch.device,
    dtype: torch.dtype,
    with_head: bool,
    cut: bool,
    team: Axis | None = None,
) -> tuple[Any, set[str], Partitioned | None]:
    """Load a model.

    Args:
        with_head: the whole model with its head; else the base model.
        cut: leave out the base model's layers after the hooks'.
        team: the ranks that hold the model together, as `llm.shard` says; None: this rank holds all of it.

    Returns:
        The model, the names of parameters that the files do not have, and what gathers the parameters of a
        model that is partitioned.

    Raises:
        ConfigError: the weights do not load.
    """
    import transformers

    auto = getattr(transformers, facts.auto[1 if with_head else 0])
    how: dict[str, Any] = {"dtype": dtype, "attn_implementation": facts.attn}
    remote = cfg.trust_remote_code
    with loading(cfg.name):
        config = transformers.AutoConfig.from_pretrained(facts.path, trust_remote_code=remote)
        kind: Any = class_of(auto, config, cfg.name, trust_remote_code=remote, **how)
        shorter = cut_class(kind, facts.hooks) if cut else kind
        if cfg.random_init:
            return without_cache(random_model(shorter, config, **how).to(device)), set(), None
        if team is None:
            model, report = shorter.from_pretrained(
                facts.path, config=config, output_loading_info=True, **how
            )
            return without_cache(model.to(device)), set(report["missing_keys"]), None
        if cfg.shard == "tp":
            model, lacking = load_split(shorter, config, facts.path, team=team, device=device, **how)
            return without_cache(model), lacking, None
        hooks = facts.hooks if cut else ()
        model, lacking = load_partitioned(
            kind, config, hooks, facts.path, team=team, device=device, offload=cfg.offload, **how
        )
    base: Any = model.base_model
    return without_cache(model), lacking, Partitioned(base, team)
