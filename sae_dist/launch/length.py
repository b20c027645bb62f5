"""Runs that continue to a greater length than they were begun with."""

import copy
from pathlib import Path

from sae_dist.config.run import Resolved, RunConfig, load_config
from sae_dist.launch.settle import Settled

OPEN = ("shuffle.lanes", "shuffle.block_chunks", "eval.tokens", "eval.ce_tokens")
"""Keys that, where a command leaves them open, stay what the folder was begun with."""


def as_begun(cfg: RunConfig, config_name: str) -> RunConfig:
    """Return a copy with the length that the config in its folder has, if there is one, and its open values.

    Open fields are filled in from the length. Settled with the first length, a config gets the values that
    the run was begun with, and only the length differs.

    Raises:
        ConfigError: the file is not the config of a run.
    """
    begun, frozen = with_open(cfg, config_name), frozen_of(cfg, config_name)
    if frozen is not None:
        begun.train_tokens = frozen.train_tokens
    return begun


def with_open(cfg: RunConfig, config_name: str) -> RunConfig:
    """Return a copy in which keys of OPEN that are null have the values of the config in its folder.

    Raises:
        ConfigError: the file is not the config of a run.
    """
    found, frozen = copy.deepcopy(cfg), frozen_of(cfg, config_name)
    for key in OPEN if frozen is not None else ():
        section, _, name = key.partition(".")
        if getattr(getattr(found, section), name) is None:
            setattr(getattr(found, section), name, getattr(getattr(frozen, section), name))
    return found


def frozen_of(cfg: RunConfig, config_name: str) -> Resolved | None:
    """Return the config in the folder of a run that has a name; None: there is none."""
    path = Path(cfg.output).expanduser() / cfg.name / config_name if cfg.name else None
    return load_config(path) if path is not None and path.is_file() else None


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
