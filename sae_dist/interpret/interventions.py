"""Interventions on a latent: words such as `clamp(4.0)`, checked when they are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from sae_dist.export.statistics import CodeStatistics

CLAMP, ADD, ABLATE, MEAN, PROJECT_OUT = "clamp", "add", "ablate", "mean", "project_out"


@dataclass(frozen=True)
class Intervention:
    """A change of one latent's code z, or of the activation x along the latent's decoder row d.

    Attributes:
        how: clamp: z becomes `value`; add: z + `value`; ablate: 0; mean: its mean over tokens; project_out: x
            loses its component along d.
        value: None where `how` needs none, or takes it from what was measured.
        times: `value` counts in the 99.9th percentiles of the latent's codes.
    """

    how: str
    value: float | None = None
    times: bool = False

    def resolved(self, latent: int, statistics: CodeStatistics | None) -> Intervention:
        """Return the same with its value in units of codes.

        Raises:
            ConfigError: that needs statistics which were never measured, or the latent never fired.
        """
        if not self.times and not (self.how == MEAN and self.value is None):
            return self
        if statistics is None:
            raise ConfigError(
                f"latent {latent}: {self} needs the latent's usual codes, which were not measured; give a "
                "number, or measure them first: d.measure(lm)"
            )
        if self.how == MEAN:
            mean = float(statistics.rate_F[latent] * statistics.mean_F[latent])
            return Intervention(CLAMP, mean)
        unit = float(statistics.p999_F[latent])
        if unit == 0:
            raise ConfigError(
                f"latent {latent} never fired on {statistics.rows:,} rows, so {self} means nothing; give a "
                "number, or choose a latent that fires"
            )
        assert self.value is not None
        return Intervention(self.how, self.value * unit)

    def new(self, code: Tensor) -> Tensor:
        """Return what codes become, in the same shape."""
        if self.how == ADD:
            assert self.value is not None
            return code + self.value
        return code.new_full(code.shape, self.value if self.how in (CLAMP, MEAN) and self.value else 0.0)

    def __str__(self) -> str:
        """Return the intervention as it is written."""
        amount = "" if self.value is None else f'"{self.value:g}x"' if self.times else f"{self.value:g}"
        return f"{self.how}({amount})"


def clamp(value: float | str) -> Intervention:
    """Set a latent's code to a value at every position.

    Args:
        value: a code, or a text such as "4x": so many times the 99.9th percentile of the latent's codes.

    Raises:
        ConfigError: it is no finite number.
    """
    return Intervention(CLAMP, *_amount(value, CLAMP))


def add(value: float | str) -> Intervention:
    """Add a value to a latent's code, whatever it is.

    Args:
        value: as in `clamp`.

    Raises:
        ConfigError: it is no finite number.
    """
    return Intervention(ADD, *_amount(value, ADD))


def ablate() -> Intervention:
    """Set a latent's code to 0."""
    return Intervention(ABLATE)


def mean(value: float | None = None) -> Intervention:
    """Set a latent's code to its mean over tokens, on which it fires or not.

    Args:
        value: that mean; None: as it was measured.

    Raises:
        ConfigError: it is no finite number.
    """
    return Intervention(MEAN) if value is None else Intervention(MEAN, *_amount(value, MEAN))


def project_out() -> Intervention:
    """Remove from the activation its component along a latent's decoder row, whatever the code is."""
    return Intervention(PROJECT_OUT)


def _amount(value: float | str, how: str) -> tuple[float, bool]:
    times = isinstance(value, str) and value.strip().lower().endswith("x")
    try:
        number = float(value.strip()[:-1] if isinstance(value, str) and times else value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ConfigError(f'{how}({value}): the dose must be a finite number, or a text such as "4x"')
    return number, times
