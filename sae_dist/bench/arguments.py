"""Options that the commands of `sae-dist bench` share, and how their values are read."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_dist.config.counts import parse_count
from sae_dist.core.errors import ConfigError
from sae_dist.launch import arguments

OPTIONS: dict[str, dict[str, Any]] = {
    "--folder": {"type": Path, "default": Path("bench"), "help": "the folder of the benchmark"},
    "--device": {
        "choices": ("auto", "cpu", "cuda"),
        "default": "auto",
        "help": "auto is CUDA where there is any",
    },
    "--latents": {"default": "4096", "help": "one or several"},
    "--width": {"default": "384", "help": "D of the activations"},
    "--k": {"default": "32", "help": "codes of a row"},
    "--batch": {"default": "2048", "help": "rows of a step"},
    "--kernels": {
        "choices": ("auto", "triton", "torch", "reference"),
        "default": "auto",
        "help": "the backend that is timed",
    },
    "--peer-python": {
        "help": "saelens=/path/bin/python,... instead of the environments of sae-dist bench peers"
    },
}
FEWEST_STEPS = 20


class Parser(arguments.Parser):
    """A parser that knows OPTIONS and shows each default in the help."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:  # type: ignore[override]
        """Add an option; a setting that is not given is that of OPTIONS."""
        settings = OPTIONS.get(names[0], {}) | settings
        default = settings.get("default")
        if default not in (None, argparse.SUPPRESS):
            settings["help"] = f"{settings.get('help', '')} ({default})".strip()
        return super().add_argument(*names, **settings)


def count(text: str, name: str) -> int:
    """Return a positive count, written as everywhere: 500k, 1M.

    Raises:
        ConfigError: it is not a count, or not positive.
    """
    number = parse_count(text, name)
    if number < 1:
        raise ConfigError(f"{name}={text} must be greater than 0")
    return number


def counts(text: str, name: str) -> tuple[int, ...]:
    """Return several counts that commas separate, each once."""
    return tuple(dict.fromkeys(count(part, name) for part in text.split(",")))


def positive(text: str, name: str) -> float:
    """Return a number greater than 0.

    Raises:
        ConfigError: it is not a number, or not greater than 0.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"{name}={text} must be a number greater than 0")
    return number


def some_of(text: str | None, name: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the names that commas separate, each once; without a text, all that are known.

    Args:
        what: what the names are, for the error.

    Raises:
        ConfigError: a name is not known.
    """
    found = tuple(dict.fromkeys(text.split(","))) if text else tuple(known)
    for each in found:
        if each not in known:
            raise ConfigError(f"{name} {each}: the {what} are {', '.join(known)}")
    return found


def check_k(k: int, latents: int) -> None:
    """Check that a row can have k codes.

    Raises:
        ConfigError: there are fewer latents.
    """
    if k > latents:
        raise ConfigError(f"--k {k} is more than --latents {latents}; use a smaller k")


def check_tokens(tokens: int, batch: int) -> None:
    """Check that a run is long enough to say anything.

    Raises:
        ConfigError: it has fewer than FEWEST_STEPS steps.
    """
    fewest = FEWEST_STEPS * batch
    if tokens < fewest:
        raise ConfigError(f"--tokens {tokens} is too few to compare anything; use at least {fewest}")


def read_pythons(text: str) -> dict[str, str]:
    """Return peers and their interpreters, from `a=x,b=y`.

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
    """Return the device that a name means: `auto` means CUDA where torch finds it.

    Raises:
        ConfigError: cuda is asked for, and torch does not find it.
    """
    if name == "cpu":
        return name
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return "cuda" if found else "cpu"
