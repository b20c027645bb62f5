"""Numbers in few digits, as the pages show them."""

import math
import re
from typing import Any

from sae_dist.core.text import visible

SPACES = re.compile(" {3,}")
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: Any, digits: int = 3) -> str:
    """Return a number in few digits; None and what is not finite as a dash."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def signed(value: float) -> str:
    """Return a number with its sign."""
    return ("+" if value > 0 else "") + number(value)


def short(value: float) -> str:
    """Return a count such as `1.2M`."""
    for size, unit in UNITS:
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def share(value: float) -> str:
    """Return a share in percent."""
    percent = 100 * value
    return "0 %" if not value else f"{percent:.2g} %" if percent >= 1e-3 else f"{percent:.0e} %"


def one_in(rate: float) -> str:
    """Return a rate such as `1 in 830`; of 1 in 20 and more in percent."""
    if not rate:
        return "never"
    if rate >= 0.05:
        return f"{100 * rate:.0f} %"
    return f"1 in {1 / rate:,.0f}" if rate > 1e-5 else f"1 in {short(1 / rate)}"


def piece(text: str) -> str:
    """Return a token's text in one line: control characters written out, many spaces counted, none as ∅."""
    return SPACES.sub(lambda run: "␣" + str(len(run[0])).translate(RAISED), visible(text, "")) or "∅"


def passage(text: str) -> str:
    """Return a token's text in many lines: an end of line is marked and kept, and so are spaces."""
    return visible(text).replace("\n", "↵\n") or "∅"
