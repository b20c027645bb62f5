"""The sweep of the learning rate: a geometric grid, extended until the best lies between two others."""

import math
from collections.abc import Callable

RATIO = 2.0
MOST = 12


def sweep(
    first: float, cost: Callable[[float], float], *, refine: bool = False, ratio: float = RATIO
) -> dict[float, float]:
    """Try first / ratio, first, first * ratio; then go on at the edge where the best lies.

    Where no try counts (all infinite: diverged, or too many latents dead), go on with smaller rates, as both
    come of large ones.

    Args:
        cost: lower is better; infinite: does not count.
        refine: at last, try half a step on either side of the best.

    Returns:
        Cost by learning rate, ascending; the best has a neighbour on either side, unless MOST tries did not
        suffice.
    """
    costs: dict[float, float] = {}

    def attempt(step: float) -> None:
        if step not in costs:
            found = cost(rate(first, step, ratio))
            costs[step] = math.inf if math.isnan(found) else found

    for step in (0, -1, 1):
        attempt(step)
    while len(costs) < MOST:
        best = min(costs, key=lambda step: (costs[step], step))
        if math.isinf(costs[best]) or best == min(costs):
            attempt(min(costs) - 1)
        elif best == max(costs):
            attempt(max(costs) + 1)
        else:
            break
    if refine and best_of(costs) is not None:
        middle = min(costs, key=lambda step: (costs[step], step))
        attempt(middle - 0.5)
        attempt(middle + 0.5)
    return {rate(first, step, ratio): costs[step] for step in sorted(costs)}


def rate(first: float, step: float, ratio: float) -> float:
    """Return a learning rate of the grid, in three digits: it names folders."""
    return float(f"{first * ratio**step:.3g}")


def best_of(costs: dict[float, float]) -> float | None:
    """Return the learning rate of the lowest cost, the smaller among equals; None: no cost is finite."""
    finite = {lr: cost for lr, cost in costs.items() if math.isfinite(cost)}
    return min(finite, key=lambda lr: (finite[lr], lr)) if finite else None


def is_bracketed(costs: dict[float, float]) -> bool:
    """Return whether the best learning rate has a neighbour on either side."""
    best = best_of(costs)
    return best is not None and min(costs) < best < max(costs)
