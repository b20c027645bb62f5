"""Values as a file holds them: plain, of the schema's types, bounded. Nothing in them is resolved or run.

A `${...}` is text. What a person writes on the command line or in conf/ goes through Hydra instead
(`launch.compose`).
"""

import dataclasses
import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import CONTROL, visible

LARGEST_BYTES = 4 << 20
MOST_PARTS = 300_000
"""Of a YAML file: read within 2 s and 500 MB on a slow core."""
DEEPEST = 16
MOST_DIGITS = 1000
LARGEST_NUMBER = 2**62
LARGEST_FLOAT = 1e30
"""Below the largest of float32."""
LONGEST_TEXT = 1 << 16
LARGEST = {
    "batch": 2**26,
    "shuffle.lanes": 2**20,
    "shuffle.chunk_rows": 2**24,
    "shuffle.block_chunks": 2**20,
    "topology.producers": 2**16,
    "topology.shard": 2**16,
    "topology.dp": 2**16,
    "topology.groups": 2**16,
    "topology.in_flight": 2**16,
    "llm.shard_size": 2**16,
    "tokens.context": 2**24,
    "activations.num_features": 2**32,
    "activations.width": 2**24,
    "activations.group_size": 2**32,
    "sae.num_latents": 2**32,
    "sae.k": 2**24,
    "topology.timeout_s": 2**27,
    "metrics.telemetry_s": 2**27,
}
"""The largest values of keys that are allocated or looped over, in a file as on the command line."""
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
NUMBER = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+")
"""What YAML 1.1 has as text, and everybody else as a number: 1e-3."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader of plain values: dates are text, and no key is there twice."""

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if len(set(map(str, names))) < len(names):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text which any reader could take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789"))


def read_yaml(text: str) -> Any:
    """Return what YAML holds, bounded in bytes, parts and depth, without aliases.

    Raises:
        ValueError: it is none, or beyond a bound; in one line.
    """
    if len(text) > LARGEST_BYTES:
        raise ValueError(f"{len(text)} characters, at most {LARGEST_BYTES} are read")
    depth = 0
    try:
        for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
            opens = isinstance(event, yaml.CollectionStartEvent)
            depth += opens - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ValueError("it has anchors or aliases (&, *); write each value where it belongs")
            if depth > DEEPEST:
                raise ValueError(f"nested more than {DEEPEST} deep")
            if number > MOST_PARTS:
                raise ValueError(f"more than {MOST_PARTS} values")
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ValueError(f"{error.problem}{line}") from None
    except (yaml.YAMLError, OverflowError, RecursionError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def check_yaml(path: Path) -> None:
    """Check that a YAML file which others will read, aliases included, is within the bounds of `read_yaml`.

    Raises:
        ConfigError: it is not; YAML that is wrong in another way is left to its reader.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise ConfigError(f"{path} has more than {LARGEST_BYTES} bytes; no config is so large")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8", errors="replace"), Loader=_Loader)
    except yaml.YAMLError as error:
        if "nesting" not in str(error):
            return
        raise ConfigError(f"{path}: nested more than {DEEPEST} deep") from None
    if root is not None and _parts(root, {}, 0) > MOST_PARTS:
        raise ConfigError(f"{path}: more than {MOST_PARTS} values, or nested more than {DEEPEST} deep")


def _parts(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Return the number of values below a node, each alias counted as what it stands for."""
    if depth > DEEPEST:
        return MOST_PARTS + 1
    if isinstance(node, yaml.ScalarNode):
        number = node.tag.endswith((":int", ":float"))
        return MOST_PARTS + 1 if number and len(node.value) > MOST_DIGITS else 1
    if id(node) not in known:
        known[id(node)] = MOST_PARTS + 1  # as long as it is looked at: it may hold itself
        below = [each for pair in node.value for each in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_parts(each, known, depth + 1) for each in below)
    return known[id(node)]


def write_yaml(values: Any) -> str:
    """Return values as YAML that `read_yaml` reads back equal; `${...}` stays as it is."""
    return yaml.dump(values, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def fitting(value: Any, hint: Any, key: str) -> Any:
    """Return a value of a file if it fits a field of the schema: its type, and its bound.

    A whole number is also a number. A field without a type is a count or a list.

    Raises:
        ValueError: it does not; in one line.
    """
    if value is None:
        if hint is Any or types.NoneType in typing.get_args(hint):
            return None
        raise ValueError(f"{key} is null; it takes {_in_words(hint)}")
    kinds = [each for each in typing.get_args(hint) or (hint,) if each is not types.NoneType]
    if typing.get_origin(hint) is list:
        kinds = [hint]
    for kind in kinds:
        if kind is Any and isinstance(value, bool | int | float | str | list):
            return _bounded(value, key)
        if typing.get_origin(kind) is list and isinstance(value, list):
            (item,) = typing.get_args(kind)
            return [fitting(each, item, key) for each in value]
        if kind is float and isinstance(value, str) and NUMBER.fullmatch(value):
            value = float(value)
        if kind is float and type(value) is int:
            value = float(_bounded(value, key))
        if isinstance(kind, type) and type(value) is kind:
            return _bounded(value, key)
    raise ValueError(f"{key}={_shown(value)} has the wrong type; it takes {_in_words(hint)}")


def _bounded(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_bounded(each, key) for each in value]
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(f"{key} has {len(value)} characters; at most {LONGEST_TEXT} are read")
    if isinstance(value, str) and (sign := CONTROL.search(value)):
        raise ValueError(f"{key}={_shown(value)} has the control character {visible(sign[0], '')}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}={value} is no finite number")
    most = LARGEST.get(key, LARGEST_FLOAT if type(value) is float else LARGEST_NUMBER)
    if type(value) in (int, float) and abs(value) > most:
        raise ValueError(f"{key}={_shown(value)} is too large; at most {most}")
    return value


def build(kind: type, tree: Any, prefix: str = "") -> Any:
    """Return a dataclass of the schema, whose fields are read from a tree of a file; others have defaults.

    Raises:
        ValueError: a key that the schema has not, or a value that does not fit.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'the file'} holds no keys")
    hints = typing.get_type_hints(kind)
    for name in tree:
        if name not in hints:
            raise ValueError(f"{prefix}{_shown(name)} is not a key")
    found = {}
    for item in dataclasses.fields(kind):
        name, hint = item.name, hints[item.name]
        if dataclasses.is_dataclass(hint):
            found[name] = build(typing.cast(type, hint), tree.get(name, {}), f"{prefix}{name}.")
        elif name in tree:
            found[name] = fitting(tree[name], hint, prefix + name)
        if found.get(name, item.default) == "???":
            raise ValueError(f"{prefix}{name} is missing")
    return kind(**found)


def _in_words(hint: Any) -> str:
    kinds = [hint, *typing.get_args(hint)]
    return next((WORDS[typing.get_origin(k) or k] for k in kinds if (typing.get_origin(k) or k) in WORDS), "")


def _shown(value: Any) -> str:
    try:
        text = str(value)
    except ValueError:  # more digits than Python writes
        return "a number with thousands of digits"
    return visible(text if len(text) <= 60 else f"{text[:60]}...", "")
