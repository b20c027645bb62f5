"""Refuses passwords and tokens on the command line, which the run folder would keep."""

import os
import re
from collections.abc import Iterator
from typing import Any

from sae_dist.config.run import RunConfig, flat
from sae_dist.core.errors import ConfigError

NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
SHORTEST = 16
IN_URL = re.compile(
    r"://[^/\s@]*:[^/\s@]+@"  # user:password@
    r"|[?&](x-amz-signature|x-goog-signature|sig|signature|token|access_token|api_key|key)=",
    re.IGNORECASE,
)
SET = re.compile(r"\b\w*(KEY|TOKEN|SECRET|PASSWORD)=.")
"""A line of a job's script that sets a variable with a secret."""
KNOWN = re.compile(r"\bhf_[A-Za-z0-9]{30,}|\b(AKIA|ASIA)[A-Z0-9]{16}\b|\bBearer\s+\S{8,}")


def check_secrets(cfg: RunConfig) -> None:
    """Refuse a config that holds a secret: config.yaml, provenance.json, logs and W&B would all show it.

    Raises:
        ConfigError: names the key and never the value.
    """
    secrets = [
        value for name, value in os.environ.items() if NAMES.search(name.upper()) and len(value) >= SHORTEST
    ]
    for key, value in flat(cfg).items():
        for text in _texts(value):
            if any(form.search(text) for form in (IN_URL, SET, KNOWN)) or any(
                secret in text for secret in secrets
            ):
                raise ConfigError(
                    f"{key} holds a password or token, which the run folder would keep for everyone to read; "
                    "give it by the environment (HF_TOKEN, WANDB_API_KEY, AWS_*) or by ~/.netrc"
                )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
