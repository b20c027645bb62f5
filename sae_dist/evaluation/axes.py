"""The ends of logarithmic axes of FVU, L0 and width."""

MARGIN = 0.05
LEAST_SPAN = 1.25
"""The least ratio of an axis' ends: a smaller one would spread what only rounding tells apart."""


def spanned(values: list[float]) -> tuple[float, float]:
    """Return the ends of an axis around positive values: their own with a margin, LEAST_SPAN apart."""
    low, high = min(values), max(values)
    margin = max((high / low) ** MARGIN, (LEAST_SPAN * low / high) ** 0.5)
    return low / margin, high * margin
