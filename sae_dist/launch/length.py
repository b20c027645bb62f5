"""Runs that continue to a greater length than they were begun with."""

import copy
from pathlib import Path

from sae_dist.config.run import RunConfig, load_config
from sae_dist.launch.settle import Settled


def as_begun(cfg: RunConfig, config_name: str) -> RunConfig:
    """Return a copy with the length that the config in its folder has, if there is one.

    Open fields are filled in from the length. Settled with the first length, a config gets the values that
    the run was begun with, and only the length differs.

    Raises:
        ConfigError: the file is not the config of a run.
    """
    frozen = Path(cfg.output).expanduser() / cfg.name / config_name if cfg.name else None
    if frozen is None or not frozen.is_file():
        return cfg
    begun = copy.deepcopy(cfg)
    begun.train_tokens = load_config(frozen).train_tokens
    return begun


def with_length(settled: Settled, tokens: int) -> Settled:
    """Return the same run, trained for `tokens`, with the schedule of that length.

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
