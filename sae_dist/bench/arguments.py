"""How the words of `sae-dist bench` are read: counts, devices, and errors of one line."""

import argparse
import math
import os
from typing import Any

from sae_dist.config.counts import parse_count
from sae_dist.core.errors import ConfigError
from sae_dist.launch import arguments

DEVICES = ("auto", "cpu", "cuda")
FOLDER = "bench"


MEANINGS = {
    "--device": "auto is CUDA where there is any",
    "--k": "codes of a row",
    "--batch": "rows of a step",
    "--latents": "size of the dictionary",
    "--width": "D of the activations",
    "--kernels": "whose are timed",
}


class Parser(arguments.Parser):
    """A parser in which an option without a help text of its own shows its usual one."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:  # type: ignore[override]
        """As argparse's."""
        if "default" in settings:
            settings.setdefault("help", f"{MEANINGS.get(names[0], '')} ({settings['default']})".strip())
        return super().add_argument(*names, **settings)


def count(text: str, name: str) -> int:
    """A positive count, written as everywhere: 500k, 1M.

    Raises:
        ConfigError: it is none.
    """
    number = parse_count(text, name)
    if number < 1:
        raise ConfigError(f"{name}={text} must be greater than 0")
    return number


def counts(text: str, name: str) -> tuple[int, ...]:
    """Several, separated by commas, each once."""
    return tuple(dict.fromkeys(count(part, name) for part in text.split(",")))


def positive(text: str, name: str) -> float:
    """A number greater than 0.

    Raises:
        ConfigError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"{name}={text} must be a number greater than 0")
    return number


def pairs(text: str) -> dict[str, str]:
    """`a=x,b=y`.

    Raises:
        ConfigError: a part has no `=`.
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--peer-python {part}: write NAME=/path/to/python")
        found[name] = os.path.abspath(os.path.expanduser(value))
    return found


def device(name: str) -> str:
    """`auto` means CUDA where torch finds it.

    Raises:
        ConfigError: cuda is asked for and not there.
    """
    if name == "cpu":
        return name
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return "cuda" if found else "cpu"
