"""Reading the files of exports, whoever wrote them: what is wrong with one is named in a line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_dist.core.errors import ConfigError


def read_json(folder: Path, config: str, weights: str) -> dict[str, Any]:
    """The object in a folder's file `config`, which stands beside `weights`.

    Raises:
        ConfigError: it is missing, or not readable.
    """
    path = existing(folder, config, (config, weights))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); export the dictionary again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no keys; export the dictionary again")
    return found


def read_safetensors(folder: Path, weights: str, config: str) -> dict[str, Tensor]:
    """The tensors in a folder's file `weights`.

    Raises:
        ConfigError: it is missing, or not readable.
    """
    path = existing(folder, weights, (config, weights))
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a safetensors file ({error}); export it again") from None


def existing(folder: Path, name: str, needed: Sequence[str]) -> Path:
    """The path of a file in a folder.

    Raises:
        ConfigError: there is none.
    """
    if not (folder / name).is_file():
        raise ConfigError(f"{folder / name} does not exist; give a folder with {' and '.join(needed)}")
    return folder / name


def require(path: Path, config: Mapping[str, Any], *keys: str) -> None:
    """Whether an object that was read from `path` has keys.

    Raises:
        ConfigError: it lacks one.
    """
    for key in keys:
        if key not in config:
            raise ConfigError(f"{path} has no key {key}; export the dictionary again")


def check_shapes(
    path: Path, weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], said_by: str
) -> None:
    """Whether a file's tensors are there, and have the shapes that `said_by` makes them.

    Raises:
        ConfigError: one is missing, of another shape, or transposed.
    """
    for name, shape in shapes.items():
        if name not in weights:
            raise ConfigError(f"{path} has no tensor {name}; it has {', '.join(sorted(weights))}")
        found = list(weights[name].shape)
        if found != list(shape):
            turned = "; it is transposed" if found == list(shape)[::-1] else ""
            raise ConfigError(f"{path}: {name} has shape {found}, {said_by} says {list(shape)}{turned}")
