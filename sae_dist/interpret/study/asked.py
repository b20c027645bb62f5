"""A study as it is asked for in a shell, checked before anything heavy is loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sae_dist.core.errors import ConfigError

DOSES = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Multiples of the 99.9th percentile of a latent's codes."""
DOSED = ("clamp", "add")
HOWS = (*DOSED, "ablate", "mean", "project-out")
WORDS = ("all", "every", "prompt", "generated", "last")
"""The positions that can be steered; `interpret.forward` says what they mean."""


@dataclass(frozen=True)
class Arm:
    """One latent and what is done to it.

    Attributes:
        how: one of HOWS.
        latent: its number.
        value: the dose that was asked for beside the ladder of doses; None: none was.
        times: `value` counts in 99.9th percentiles of the latent's codes; else it is a code.
    """

    how: str
    latent: int
    value: float | None = None
    times: bool = False

    def __str__(self) -> str:
        """Return the arm as it is written in a shell, without its dashes."""
        dose = "" if self.value is None else f"={self.value:g}{'x' if self.times else ''}"
        return f"{self.how} {self.latent}{dose}"

    @property
    def name(self) -> str:
        """The arm as a part of a folder's name."""
        return str(self).replace(" ", "_")


@dataclass(frozen=True)
class Asked:
    """A study as it is asked for; `commands.steer` explains each option."""

    where: str
    arms: tuple[Arm, ...]
    doses: tuple[float, ...] = DOSES
    prompts: Path | None = None
    target: str | None = None
    against: str | None = None
    tokens: int = 32
    positions: str = "all"
    seed: int = 0
    controls: int = 8
    model: str | None = None
    out: Path | None = None
    force: bool = False
    trust_remote_code: bool = False
    command: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The folder's name, of what is done; of many arms, of the first ones."""
        names = [each.name for each in self.arms]
        return "+".join(names[:3]) + (f"+{len(names) - 3}_more" if len(names) > 3 else "")


def arm_of(how: str, text: str) -> Arm:
    """Read `123`, `123=4x` or `123=4.0` behind the option of an intervention.

    Raises:
        ConfigError: it is no latent's number, or the dose is no finite number, or `how` has no dose.
    """
    latent, equals, dose = text.partition("=")
    if not latent.strip().isdecimal():
        form = "LATENT or LATENT=DOSE, such as 123=4x" if how in DOSED else "a latent's number, such as 123"
        raise ConfigError(f"--{how} {text}: write {form}")
    if not equals:
        return Arm(how, int(latent))
    if how not in DOSED:
        raise ConfigError(f"--{how} {text}: it has no dose; write --{how} {latent}")
    times = dose.strip().lower().endswith("x")
    return Arm(how, int(latent), _finite(dose.strip()[:-1] if times else dose, f"--{how} {text}"), times)


def doses_of(text: str) -> tuple[float, ...]:
    """Read doses that commas separate, in order, each once.

    Raises:
        ConfigError: one is no finite number, or there is none.
    """
    parts = [part.strip().removesuffix("x") for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"--doses {text}: there is no dose; write --doses -1,0,1,4".replace("  ", " "))
    return tuple(sorted({_finite(part, f"--doses {text}") for part in parts}))


def checked_arms(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Return the arms, each of which is a study of its own.

    Raises:
        ConfigError: there is none, or one is there twice.
    """
    if not arms:
        raise ConfigError("nothing to do: give --clamp LATENT, --add, --ablate, --mean or --project-out")
    seen: set[tuple[str, int]] = set()
    for each in arms:
        if (each.how, each.latent) in seen:
            raise ConfigError(f"--{each.how} {each.latent} is there twice; give its doses as --doses 1,2,4")
        seen.add((each.how, each.latent))
    return tuple(arms)


def whole_number(text: str, option: str, least: int, most: int) -> int:
    """Read a whole number within bounds.

    Raises:
        ConfigError: it is none, or out of bounds.
    """
    if not text.strip().lstrip("-").isdecimal() or not least <= int(text) <= most:
        raise ConfigError(f"{option} {text}: it must be a whole number from {least} to {most}")
    return int(text)


def _finite(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f'{where}: the dose must be a finite number, or a text such as "4x"')
    return number
