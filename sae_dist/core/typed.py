"""Values of JSON beside the types that they should have."""

import types
import typing
from typing import Any


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
