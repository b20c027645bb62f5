"""Paths in a run's config, made absolute: a run is continued and evaluated from any folder."""

import copy
import glob
import os
from typing import Any, TypeVar

from sae_dist.config.run import RunConfig

PATHS = (
    "llm.name",
    "tokens.path",
    "tokens.dataset",
    "tokens.data_files",
    "activations.path",
    "sae.start",
    "eval.corpus",
    "eval.probes",
)
"""Keys that hold a path on this machine, or something else: the name of a model, an address, a word."""
ELSEWHERE = ("://", "pipe:")
"""Parts of what is no path."""
BRACE = "{"
C = TypeVar("C", bound=RunConfig)


def with_absolute_paths(cfg: C) -> tuple[C, dict[str, Any]]:
    """Return a copy whose relative paths are absolute, and by key what they were.

    A path is what is there, seen from the current folder; all else is left as it is.
    """
    cfg, written = copy.deepcopy(cfg), {}
    for key in PATHS:
        section, _, name = key.rpartition(".")
        if key == "tokens.data_files" and os.path.isdir(cfg.tokens.dataset or ""):
            continue  # relative to that folder
        part = getattr(cfg, section)
        value = getattr(part, name, None)
        found = [*map(_absolute, value)] if isinstance(value, list) else _absolute(value)
        if found != value:
            written[key] = value
            setattr(part, name, found)
    return cfg, written


def _absolute(value: Any) -> Any:
    if not isinstance(value, str) or not value or value.startswith(("/", "~")):
        return value
    if any(sign in value for sign in ELSEWHERE):
        return value
    here = os.path.exists(value) or bool(glob.has_magic(value) and glob.glob(value))
    # Braces are the tar files' own pattern; they stand in the last part of a path.
    here |= BRACE in value and os.path.isdir(os.path.dirname(value.split(BRACE)[0]) or ".")
    return os.path.abspath(value) if here else value
