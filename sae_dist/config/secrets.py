"""Refuses passwords and tokens on the command line, which the run folder would keep."""

import re
from collections.abc import Iterator
from typing import Any

from sae_dist.config.plain import LONGEST_TEXT
from sae_dist.config.run import RunConfig, flat
from sae_dist.core.errors import ConfigError
from sae_dist.core.hidden import SECRET_NAME, holds_secret

TAKEN = re.compile(r"\$\{\s*oc\.(?:env|decode)\s*:[^}]*?(\w+)\s*(?:,[^}]*)?\}+")
"""A value that is taken from a variable of the environment."""


def check_secrets(cfg: RunConfig) -> None:
    """Refuse a config that holds a secret: config.yaml, provenance.json, logs and W&B would all show it.

    Raises:
        ConfigError: it does, or a value is too long; names the key and never the value.
    """
    for key, value in flat(cfg).items():
        for text in _texts(value):
            if len(text) > LONGEST_TEXT:
                raise ConfigError(f"{key} has {len(text):,} characters; at most {LONGEST_TEXT:,} are read")
            if holds_secret(text):
                raise _refusal(key)


def check_taken(values: Any, key: str = "") -> None:
    """Refuse a config, before its `${...}` are resolved, that takes a variable named like a secret.

    Args:
        values: nested as the config.
        key: of `values`.

    Raises:
        ConfigError: names the key and the variable.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            check_taken(value, f"{key}.{name}" if key else str(name))
        return
    for text in _texts(values):
        for found in TAKEN.finditer(text):
            if SECRET_NAME.search(found[1]):
                raise _refusal(key)


def _refusal(key: str) -> ConfigError:
    return ConfigError(
        f"{key} holds a password or token, which the run folder would keep for everyone to read; "
        "give it by the environment (HF_TOKEN, WANDB_API_KEY, AWS_*) or by ~/.netrc"
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield f"{name}={each}"
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
