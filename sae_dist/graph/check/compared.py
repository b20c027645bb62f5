"""The comparison of nodes with their controls, and of layers with what their dictionaries make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_dist.graph.check.agree import FEWEST, RESAMPLES, Floats, wilson


@dataclass(frozen=True)
class Beats:
    """The comparison of nodes' effects with those of their controls.

    Attributes:
        num, larger: how many have a control, and how many have a larger effect than it.
        interval: of that share, by Wilson.
        own, control: the median sizes of both effects.
    """

    num: int
    larger: int
    interval: tuple[float, float]
    own: float
    control: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Beats":
        """Return it from the effects of nodes and of their controls."""
        larger = sum(abs(own) > abs(other) for own, other in pairs)
        own, other = (float(np.median(np.abs(each))) if pairs else 0.0 for each in _columns(pairs))
        return cls(len(pairs), larger, wilson(larger, len(pairs)), own, other)

    @property
    def passes(self) -> bool:
        """The answer to: are effects larger than their controls' more often than by chance?"""
        return self.interval[0] > 0.5

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values."""
        shown = {"num": self.num, "larger": self.larger, "interval": list(self.interval)}
        return shown | {"median_effect": self.own, "median_control": self.control}


@dataclass(frozen=True)
class Told:
    """The share of later layers' change that the dictionaries tell, where nodes are cut.

    Attributes:
        share: 1 if all of it; 0 or below if no more than nothing would.
        interval: by resampling the cuts.
        num: how many cuts have a later layer with a dictionary.
    """

    share: float
    interval: tuple[float, float]
    num: int

    @classmethod
    def of(cls, unsaid_M: Floats, moved_M: Floats, seed: int) -> "Told":
        """Return it from the squared norms of what is not told and of all that moved."""
        at = np.flatnonzero(moved_M > 0)
        unsaid, moved = unsaid_M[at], moved_M[at]
        if len(at) < FEWEST:
            share = 1 - float(unsaid.sum() / moved.sum()) if len(at) else float("nan")
            return cls(share, (float("-inf"), 1.0), len(at))
        drawn = np.random.default_rng(seed).integers(0, len(at), (RESAMPLES, len(at)))
        found = 1 - unsaid[drawn].sum(1) / moved[drawn].sum(1)
        low, high = np.quantile(found, [0.025, 0.975])
        return cls(1 - float(unsaid.sum() / moved.sum()), (float(low), float(high)), len(at))


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [own for own, _ in pairs], [other for _, other in pairs]
