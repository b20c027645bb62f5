"""A run that goes on to a greater length than it was begun with."""

import copy
from pathlib import Path

from sae_dist.config.run import RunConfig, load_config
from sae_dist.launch.settle import Settled


def as_begun(cfg: RunConfig, config_name: str) -> RunConfig:
    """A copy with the length that the config in its folder has, if there is one.

    What a config leaves open is filled in from its length: settled like this, it gets the values that the run
    was begun with, and nothing but the length differs.

    Raises:
        ConfigError: what lies there is not the config of a run.
    """
    frozen = Path(cfg.output).expanduser() / cfg.name / config_name if cfg.name else None
    if frozen is None or not frozen.is_file():
        return cfg
    begun = copy.deepcopy(cfg)
    begun.train_tokens = load_config(frozen).train_tokens
    return begun


def with_length(settled: Settled, tokens: int) -> Settled:
    """The same run, trained for `tokens`; its schedule becomes that of the new length.

    Raises:
        ConfigError: its cache of activations is shorter.
    """
    if settled.cfg.train_tokens == tokens:
        return settled
    settled = copy.deepcopy(settled)
    for cfg in (settled.cfg, *settled.members):
        cfg.train_tokens = tokens
    if settled.cfg.reads_cache:
        from sae_dist.launch.cached import check_cached

        check_cached(settled.cfg)
    return settled
