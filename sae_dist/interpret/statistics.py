"""Intervals and tests of paired effects: prompts are the unit, resampled whole.

Letters: as core.types; N prompts, C conditions, R resamples, M draws of a control.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEVEL = 0.05
RESAMPLES = 10_000
FEWEST_BEYOND = 20
BLOCK_BYTES = 1 << 27


@dataclass(frozen=True)
class Estimates:
    """The mean effect of each of C conditions, with what resampling the prompts says of its error.

    Attributes:
        mean_C: over prompts.
        error_C: standard error of that mean; 0 where all prompts agree.
        size_RC: the distance between a resample's mean and `mean_C`, in the resample's own standard errors.
        num_prompts: how many prompts were resampled.

    Beyond the furthest FEWEST_BEYOND resamples the tail is Student's, as far stretched as they are: a test
    among thousands of latents asks for smaller probabilities than resamples can count.
    """

    mean_C: Floats
    error_C: Floats
    size_RC: NDArray[np.float32]
    num_prompts: int

    @property
    def p_C(self) -> Floats:
        """The probability of a mean this far from 0 if the true one is 0; 1 where there is no effect."""
        from scipy.stats import t

        size_C = np.abs(self.mean_C) / np.where(self.error_C > 0, self.error_C, np.inf)
        further_C = (self.size_RC >= size_C).sum(0)
        counted_C = (1 + further_C) / (1 + len(self.size_RC))
        tail_C = 2 * t.sf(size_C / self._stretch_C, max(self.num_prompts - 1, 1))
        found_C = np.where(further_C < FEWEST_BEYOND, np.minimum(counted_C, tail_C), counted_C)
        # Prompts that agree to the last bit say nothing of others: no resample differs.
        return np.where(self.error_C > 0, found_C, 1.0)

    @cached_property
    def _stretch_C(self) -> Floats:
        """The factor by which the tail of the resamples reaches further than Student's, at least 1 [C]."""
        from scipy.stats import t

        R = len(self.size_RC)
        beyond = min(FEWEST_BEYOND, R)
        furthest_C = np.partition(self.size_RC, R - beyond, axis=0)[R - beyond].astype(np.float64)
        usual = t.ppf(1 - beyond / R / 2, max(self.num_prompts - 1, 1)) if beyond < R else 0.0
        return np.maximum(1.0, furthest_C / max(usual, 1e-9))

    def intervals(self, level_C: Floats | float = LEVEL) -> tuple[Floats, Floats]:
        """Return the lower and upper ends [C] of intervals that miss the true mean with probability `level`.

        The interval at level a leaves 0 out where `p_C` is below a. It is infinite where so few
        prompts differ that resamples without any of them are common.
        """
        from scipy.stats import t

        level_C = np.broadcast_to(level_C, self.mean_C.shape)
        ordered_RC = np.sort(self.size_RC, axis=0)
        R = len(ordered_RC)
        place_C = np.clip(np.ceil((1 - level_C) * (R + 1)).astype(int) - 1, 0, R - 1)
        far_C = ordered_RC[place_C, np.arange(len(place_C))].astype(np.float64)
        tail_C = t.ppf(1 - level_C / 2, max(self.num_prompts - 1, 1)) * self._stretch_C
        far_C = np.where(level_C * R < FEWEST_BEYOND, tail_C, far_C)
        reach_C = np.where(self.error_C > 0, far_C, 0.0) * self.error_C
        return self.mean_C - reach_C, self.mean_C + reach_C


def estimates(effect_NC: Floats, seed: int, resamples: int = RESAMPLES) -> Estimates:
    """Estimate effects by resampling prompts, the same ones for every condition.

    The studentised bootstrap, symmetric: percentiles cover too little with few prompts or skewed effects.
    """
    effect_NC = np.asarray(effect_NC, dtype=np.float64)
    N, C = effect_NC.shape
    mean_C = effect_NC.mean(0)
    # Differences below the rounding of float32 are none.
    error_C = effect_NC.std(0, ddof=1) / N**0.5 if N > 1 else np.zeros(C)
    error_C = np.where(error_C > 1e-7 * np.abs(effect_NC).max(0, initial=0), error_C, 0.0)
    size_RC = np.zeros((resamples, C), dtype=np.float32)
    centred_NC = effect_NC - mean_C
    share_RN = _shares(N, seed, resamples)
    step = max(1, BLOCK_BYTES // (8 * resamples))
    for first in range(0, C if N > 1 else 0, step):
        own = slice(first, first + step)
        off_RC = share_RN @ centred_NC[:, own]
        spread_RC = np.maximum(share_RN @ centred_NC[:, own] ** 2 - off_RC**2, 0)
        own_error_RC = np.sqrt(spread_RC / (N - 1))
        # A resample whose prompts all agree has no error of its own: it counts as far away as any. Where few
        # prompts differ these are many, and no interval is known.
        flat_RC = own_error_RC <= 1e-6 * error_C[own]
        size_RC[:, own] = np.where(flat_RC, np.inf, np.abs(off_RC) / np.where(flat_RC, 1.0, own_error_RC))
        size_RC[:, own][:, error_C[own] == 0] = 0
    return Estimates(mean_C, error_C, size_RC, N)


@lru_cache(maxsize=2)
def _shares(N: int, seed: int, resamples: int) -> Floats:
    """Return the share that each of N prompts has in each resample [R, N]."""
    drawn_RN = np.random.default_rng([seed, N]).multinomial(N, np.full(N, 1 / N), size=resamples)
    return drawn_RN / N


def holm(p_C: ArrayLike, tests: int | None = None) -> Floats:
    """Return p-values adjusted so that the chance of any false one below a level is at most that level.

    Args:
        tests: how many there are in all; the p-values of those that are not given are 1. None: all are given.
    """
    p_C = np.asarray(p_C, np.float64)
    C = len(p_C)
    order = np.argsort(p_C, kind="stable")
    factor_C = (C if tests is None else tests) - np.arange(C)
    adjusted = np.minimum(1.0, np.maximum.accumulate(p_C[order] * factor_C))
    found = np.empty(C)
    found[order] = adjusted
    return found


def holm_levels(p_C: Floats, level: float = LEVEL) -> Floats:
    """Return the level at which Holm's procedure judges each condition [C].

    The smallest p-value is judged at level / C, the next at level / (C - 1); after the first that fails all
    are judged at its level.
    """
    C = len(p_C)
    order = np.argsort(p_C, kind="stable")
    level_C = level / (C - np.arange(C))
    failed = np.flatnonzero(p_C[order] > level_C)
    if len(failed):
        level_C[failed[0] :] = level_C[failed[0]]
    found = np.empty(C)
    found[order] = level_C
    return found


def reach_of_draws(drawn: Estimates, level: float = LEVEL) -> tuple[float, float]:
    """Return an interval for what one more draw of a control would show.

    It holds the interval of each draw, and the prediction of a further draw by Student's distribution: the
    mean over draws would hide that any single direction moves something.

    Args:
        drawn: the M draws of one control.
    """
    from scipy.stats import t

    lower_M, upper_M = drawn.intervals(level)
    # A draw that acts on few prompts has no interval of its own; its mean counts below.
    lower_M, upper_M = (
        np.where(np.isfinite(end_M), end_M, drawn.mean_C + side * 2 * drawn.error_C)
        for side, end_M in ((-1, lower_M), (1, upper_M))
    )
    lower, upper, M = float(lower_M.min()), float(upper_M.max()), len(lower_M)
    if M > 1:
        centre, spread = float(drawn.mean_C.mean()), float(drawn.mean_C.std(ddof=1))
        beyond = float(t.ppf(1 - level / 2, M - 1)) * spread * (1 + 1 / M) ** 0.5
        lower, upper = min(lower, centre - beyond), max(upper, centre + beyond)
    return lower, upper


def agreement(predicted_C: Floats, exact_C: Floats) -> tuple[float, float]:
    """Return the share of equal signs, and Spearman's rank correlation; nan where they are not defined."""
    differ = exact_C != 0
    sign = (
        float(np.mean(np.sign(predicted_C[differ]) == np.sign(exact_C[differ]))) if differ.any() else np.nan
    )
    if len(exact_C) < 3:
        return sign, float("nan")
    one, other = (
        np.argsort(np.argsort(each, kind="stable"), kind="stable") - (len(each) - 1) / 2
        for each in (predicted_C, exact_C)
    )
    return sign, float((one * other).sum() / (one * one).sum())
