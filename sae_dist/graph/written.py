"""A graph's files: graph.json, which says what its nodes are, and graph.safetensors with its numbers."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_tensors, write_text
from sae_dist.core.parsing import check_header, check_numbers, parse_json, read_bounded, reading
from sae_dist.core.typed import of_type
from sae_dist.graph.graph import Checks, Graph, Layer, Node

JSON, TENSORS = "graph.json", "graph.safetensors"
FORMAT = 1
KINDS = ("token", "latent", "error", "logit")
TYPES = {
    "rows": torch.int64,
    "columns": torch.int64,
    **dict.fromkeys(("weights", "constants", "total", "values"), torch.float32),
}
T = TypeVar("T")


def save(graph: Graph, folder: str | Path) -> Path:
    """Write a graph's files, each complete or absent; return the folder.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    to = Path(folder)
    to.mkdir(parents=True, exist_ok=True)
    write_tensors(to / TENSORS, {name: getattr(graph, name).contiguous() for name in TYPES})
    said = {each.name: getattr(graph, each.name) for each in fields(graph) if each.name not in TYPES}
    said |= {
        "nodes": [asdict(each) for each in graph.nodes],
        "layers": [asdict(each) for each in graph.layers],
    }
    said |= {"checks": asdict(graph.checks), "format": FORMAT}
    write_text(to / JSON, json.dumps(said, indent=1) + "\n")
    return to


def load(folder: str | Path) -> Graph:
    """Read a graph that `save` wrote.

    Raises:
        ConfigError: there is none, or its files are damaged, or do not belong together.
    """
    path = Path(folder) / JSON
    if not path.is_file():
        raise ConfigError(f"{folder} has no {JSON}; give the folder that a graph was saved in")
    with reading(path, "is damaged ({reason}); draw the graph again"):
        said = parse_json(read_bounded(path), unique=True)
        check_numbers(said)
    if not isinstance(said, dict) or said.pop("format", None) != FORMAT:
        raise ConfigError(f"{path} is of another version; draw the graph again")
    said["nodes"] = tuple(_made(Node, each, path) for each in _list(said.get("nodes"), path))
    said["layers"] = tuple(_made(Layer, each, path) for each in _list(said.get("layers"), path))
    said["checks"] = _made(Checks, said.get("checks"), path)
    for name in ("ids", "tokens", "targets", "latents"):
        said[name] = tuple(_list(said.get(name), path))
    tensors = _tensors(Path(folder) / TENSORS)
    found = _made(Graph, said | tensors, path)
    _check(found, path)
    return found


def _list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{path} is damaged (a list is missing); draw the graph again")
    return value


def _made(kind: type[T], said: Any, path: Path) -> T:
    """Return a dataclass of what a file says, each field of its type.

    Raises:
        ConfigError: a field is missing, unknown or of another type.
    """
    hints = get_type_hints(kind)
    if not isinstance(said, dict) or set(said) != set(hints):
        raise ConfigError(f"{path} is damaged (the keys of a {kind.__name__.lower()}); draw the graph again")
    for name, hint in hints.items():
        value = said[name]
        good = value in KINDS if get_origin(hint) is Literal else of_type(hint, value)
        good = good and not (isinstance(value, float) and not math.isfinite(value))
        if not good:
            raise ConfigError(f"{path} is damaged ({name}={str(value)[:40]}); draw the graph again")
    return kind(**said)


def _tensors(path: Path) -> dict[str, Tensor]:
    with reading(path, "is damaged ({reason}); draw the graph again"):
        check_header(path)
        found = load_file(path)
    if {name: each.dtype for name, each in found.items()} != TYPES:
        raise ConfigError(f"{path} is damaged (its tensors are others); draw the graph again")
    return found


def _check(graph: Graph, path: Path) -> None:
    """Check that numbers and nodes belong together.

    Raises:
        ConfigError: they do not.
    """
    M, T, L = len(graph.nodes), len(graph.logits), len(graph.weights)
    shapes = {"rows": [L], "columns": [L], "weights": [L], "constants": [M], "total": [M, T], "values": [M]}
    good = all(list(getattr(graph, name).shape) == shape for name, shape in shapes.items())
    good = good and all(bool(getattr(graph, name).isfinite().all()) for name in TYPES)
    for numbers in (graph.rows, graph.columns) if good and L else ():
        good = good and 0 <= int(numbers.min()) <= int(numbers.max()) < M
    S, places = len(graph.ids), len(graph.layers)
    good = good and len(graph.tokens) == S and len(graph.targets) == T and len(graph.index) == M
    good = good and all(0 <= each.position < S and -1 <= each.layer <= places for each in graph.nodes)
    if not good:
        raise ConfigError(f"{path} and {TENSORS} beside it do not belong together; draw the graph again")
