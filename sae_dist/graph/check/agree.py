"""The agreement of predictions with what was measured: signs, ranks and sizes, with their intervals.

Letters: C changes of nodes, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.05
RESAMPLES = 2000
FEWEST = 5
"""Fewer changes than these have no rank correlation that could be told from chance."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of predicted with measured effects.

    Attributes:
        num: how many were compared.
        same_sign: how many have the predicted sign.
        sign: that as a share; nan: none moved.
        sign_interval: by Wilson; effects that are resampled together count as one.
        rank: Spearman's correlation; nan: fewer than FEWEST, or all are alike.
        rank_interval: by resampling.
        slope: measured over predicted, by least squares through 0; 1 if sizes are right.
    """

    num: int
    same_sign: int
    sign: float
    sign_interval: tuple[float, float]
    rank: float
    rank_interval: tuple[float, float]
    slope: float

    @property
    def signs_agree(self) -> bool:
        """The answer to: is the sign right more often than by chance?"""
        return self.sign_interval[0] > 0.5

    @property
    def ranks_agree(self) -> bool:
        """The answer to: is the rank correlation above 0, beyond chance?"""
        return self.rank_interval[0] > 0

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values; None for what is not defined."""
        return {name: plain(value) for name, value in asdict(self).items()}


def agreement(
    predicted_C: Floats, measured_C: Floats, seed: int = 0, group_C: Sequence[int] | None = None
) -> Agreement:
    """Compare predicted with measured effects.

    Args:
        group_C: effects that are resampled together, such as those of one source; None: each alone.
    """
    # A prediction of exactly nothing has no sign; an effect of exactly nothing is a miss.
    told_C = predicted_C != 0
    same = int((np.sign(predicted_C[told_C]) == np.sign(measured_C[told_C])).sum())
    num = int(told_C.sum())
    group = np.arange(len(predicted_C)) if group_C is None else np.asarray(group_C)
    of_groups = [np.flatnonzero(group == each) for each in np.unique(group)]
    independent = len(np.unique(group[told_C]))
    power = float((predicted_C**2).sum())
    return Agreement(
        num=len(predicted_C),
        same_sign=same,
        sign=same / num if num else math.nan,
        sign_interval=wilson(same / max(num, 1) * independent, independent),
        rank=spearman(predicted_C, measured_C),
        rank_interval=_ranks(predicted_C, measured_C, of_groups, seed),
        slope=float((predicted_C * measured_C).sum()) / power if power else math.nan,
    )


def wilson(hits: float, num: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's interval of a share; 0 to 1 where nothing was counted."""
    if not num:
        return 0.0, 1.0
    from statistics import NormalDist

    z = NormalDist().inv_cdf(1 - level / 2)
    share = hits / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    reach = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    # At the ends rounding would leave 1 or 0 out.
    low, high = max(0.0, centre - reach), min(1.0, centre + reach)
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def spearman(one_C: Floats, other_C: Floats) -> float:
    """Return Spearman's rank correlation, ties by their mean rank; nan where it is not defined."""
    if len(one_C) < FEWEST:
        return math.nan
    a_C, b_C = (_ranked(each) for each in (one_C, other_C))
    spread = math.sqrt(float((a_C * a_C).sum()) * float((b_C * b_C).sum()))
    return float((a_C * b_C).sum()) / spread if spread else math.nan


def plain(value: Any) -> Any:
    """Return numbers as JSON knows them: None for nan and inf."""
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _ranked(value_C: Floats) -> Floats:
    """Return centred ranks, those of equal values averaged."""
    _, place_C, count = np.unique(value_C, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    found: Floats = (last - (count + 1) / 2)[place_C] - (len(value_C) - 1) / 2
    return found


def _ranks(
    predicted_C: Floats, measured_C: Floats, of_groups: list[NDArray[np.int64]], seed: int
) -> tuple[float, float]:
    if math.isnan(spearman(predicted_C, measured_C)) or len(of_groups) < FEWEST:
        return -1.0, 1.0
    draw, G = np.random.default_rng(seed), len(of_groups)
    times_RG = draw.multinomial(G, np.full(G, 1 / G), size=RESAMPLES).astype(np.float64)
    times_RC = np.empty((RESAMPLES, len(predicted_C)))
    for number, own in enumerate(of_groups):
        times_RC[:, own] = times_RG[:, number : number + 1]
    a_RC, b_RC = (_resampled_ranks(each, times_RC) for each in (predicted_C, measured_C))
    spread_R = np.sqrt((times_RC * a_RC**2).sum(1) * (times_RC * b_RC**2).sum(1))
    # A resample without any difference says nothing of ranks.
    found_R = np.divide(
        (times_RC * a_RC * b_RC).sum(1), spread_R, out=np.zeros(RESAMPLES), where=spread_R > 0
    )
    return _ends(found_R)


def _resampled_ranks(value_C: Floats, times_RC: Floats) -> Floats:
    """Return centred mean ranks in resamples that have each value so many times [R, C]."""
    _, first_C, place_C = np.unique(value_C, return_index=True, return_inverse=True)
    times_RV = np.stack([times_RC[:, place_C == level].sum(1) for level in range(len(first_C))], 1)
    rank_RV = times_RV.cumsum(1) - (times_RV - 1) / 2
    mean_R1 = (times_RC.sum(1, keepdims=True) + 1) / 2
    found: Floats = rank_RV[:, place_C] - mean_R1
    return found


def _ends(found_R: Floats) -> tuple[float, float]:
    low, high = np.quantile(found_R, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
