"""Controls of what is removed: codes of latents that fire as often, and random directions of equal size.

Letters: as core.types; C codes that are shown, I latents that fire, M controls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_dist.interpret.attribute.reading import Change, Reading
from sae_dist.interpret.statistics import Floats

FEWEST = 19
"""With fewer controls nothing is marked: the greatest of 19 bounds 95 % of what a further one would show."""
LEVEL = 0.05
DIRECTIONS = 50
"""So many random directions are removed at least."""


@dataclass(frozen=True)
class Bound:
    """The reach of one control.

    Attributes:
        controls: how many were removed.
        reach: 95 % of further ones move the metric by less, either way; None: there are too few to say. Of
            random directions it is a share of the most that any of their size could, to first order.
    """

    controls: int
    reach: float | None

    @classmethod
    def of(cls, lost_M: Floats) -> "Bound":
        """Return the bound from what the metric loses by each control."""
        M = len(lost_M)
        if M < FEWEST:
            return cls(M, None)
        # So many of M + 1 exchangeable ones are below.
        place = int(np.ceil((1 - LEVEL) * (M + 1))) - 1
        return cls(M, float(np.sort(np.abs(lost_M))[place]))


def equally_rare(usual_P: NDArray[np.float64], shown_C: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Draw, for each code that is shown, another whose latent is as rare; each once, while there are any.

    Args:
        usual_P: how often each code's latent fires; above 0.
        shown_C: codes that are shown.
    """
    draw = np.random.default_rng(seed)
    left = np.setdiff1d(np.arange(len(usual_P)), shown_C)
    found = []
    for place in draw.permutation(shown_C):
        if not len(left):
            break
        apart = np.abs(np.log(usual_P[left] / usual_P[place]))
        nearest = np.flatnonzero(apart == apart.min())
        taken = int(draw.choice(nearest))
        found.append(int(left[taken]))
        left = np.delete(left, taken)
    return np.array(sorted(found), dtype=np.int64)


def removals(found: Reading, place_C: Tensor) -> list[Change]:
    """Return the changes that remove some codes, each alone."""
    row_CE = found.directions(place_C)
    return [
        (found.position_P[place, None], -row_E[None]) for place, row_E in zip(place_C, row_CE, strict=True)
    ]


def reaches(equal: Bound, random: Bound, steepest_C: Floats) -> list[float | None]:
    """Return what 95 % of both controls of each removal do less than; None: there are too few to say.

    Args:
        steepest_C: the most that any direction of each one's size could do, to first order.
    """
    if equal.reach is None or random.reach is None:
        return [None] * len(steepest_C)
    return [max(equal.reach, random.reach * each) for each in steepest_C.tolist()]


def beyond(lost_C: Floats, reach_C: Sequence[float | None]) -> list[bool | None]:
    """Return which removals do more than their controls; None: there is no saying."""
    return [
        None if reach is None else abs(each) > reach
        for each, reach in zip(lost_C.tolist(), reach_C, strict=True)
    ]


def relative(lost_M: Floats, steepest_M: Floats) -> Floats:
    """Return what the metric loses as a share of the most that it could; without those that could nothing."""
    able_M = steepest_M > 0
    shares: Floats = lost_M[able_M] / steepest_M[able_M]
    return shares


def repeated(place_C: Tensor) -> Tensor:
    """Return codes over and over, so that they are enough for random directions [M]; all of them as often."""
    return place_C.repeat(-(-DIRECTIONS // max(1, len(place_C)))) if len(place_C) else place_C


def random_removals(found: Reading, place_C: Tensor, seed: int) -> list[Change]:
    """Return changes at the positions of some codes, of their size, along random directions."""
    norm_C = found.directions(place_C).norm(dim=1)
    unit_CE = random_units(len(place_C), found.rows_IE, seed)
    return [
        (found.position_P[place, None], (norm * unit_E)[None])
        for place, norm, unit_E in zip(place_C, norm_C, unit_CE, strict=True)
    ]


def random_units(count: int, like_IE: Tensor, seed: int) -> Tensor:
    """Return random directions of norm 1 [count, E]."""
    drawn = np.random.default_rng([seed, 1]).standard_normal((count, like_IE.shape[1]))
    return torch.nn.functional.normalize(torch.from_numpy(drawn).to(like_IE), dim=1)
