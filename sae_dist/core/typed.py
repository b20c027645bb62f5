"""Values of JSON as the dataclasses that they were written from, each of the type of its field."""

import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

C = TypeVar("C")
LONGEST_SHOWN = 60


def of_type(hint: Any, value: Any) -> bool:
    """Return whether a value is of the type of a field; true and false are no numbers."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(of_type(part, value) for part in parts)
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        each = (parts[0],) * len(value) if parts[1:] == (...,) else parts
        return len(each) == len(value) and all(map(of_type, each, value))
    if kind is dict:
        items = value.items() if isinstance(value, dict) else [(None, None)]
        return all(of_type(parts[0], key) and of_type(parts[1], item) for key, item in items)
    if hint is int:
        return type(value) is int
    return hint is Any or isinstance(value, hint)


def typed(kind: type[C], values: Mapping[str, Any]) -> C:
    """Return a dataclass with values of JSON, whose lists become tuples.

    Raises:
        TypeError: a field is missing, is not one of the class, or has a value of another type.
    """
    hints = typing.get_type_hints(kind)
    found = {key: _tuples(value) for key, value in values.items()}
    for key, value in found.items():
        if key in hints and not of_type(hints[key], value):
            raise TypeError(f"{key}={str(value)[:LONGEST_SHOWN]} is of another type")
    return kind(**found)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
