"""Counts as people write them, such as `2M`, `1e9`, `10B` and `500k`."""

from typing import Any

from sae_dist.core.errors import ConfigError

_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_count(value: Any, key: str) -> int:
    """Return `2M`, `1e9`, `10B`, `500k`, 4096 or `4096` as an int.

    Raises:
        ConfigError: not a non-negative whole number; `key` names the field.
    """
    if isinstance(value, bool):
        raise _bad(value, key)
    text = str(value).strip().lower().replace("_", "")
    unit = _UNITS.get(text[-1:], 1)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        raise _bad(value, key) from None
    if not (0 <= number < 2**62) or abs(number - round(number)) > 1e-6 * max(1.0, number):
        raise _bad(value, key)
    return round(number)


def format_count(number: int) -> str:
    """Write a count: 4096 becomes `4096`, 2000000 `2M`, 1500000 `1.5M`."""
    for letter, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size and number * 100 % size == 0:
            return f"{number / size:.15g}{letter}"
    return str(number)


def _bad(value: Any, key: str) -> ConfigError:
    return ConfigError(f"{key}={value} is not a count; write a whole number such as 4096, 500k, 2M or 1e9")


def nearest(value: int, divisor: int) -> str:
    """Name the multiples of `divisor` on both sides of a value that is none, for messages."""
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)
