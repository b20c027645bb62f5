"""Functions that read and check the files of exports; a faulty file becomes an error of one line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_dist.core.errors import ConfigError


def read_json(folder: Path, config: str, weights: str) -> dict[str, Any]:
    """Return the object in a folder's JSON file.

    Args:
        config: the name of the file.
        weights: the name of the file that belongs with it, for the error.

    Raises:
        ConfigError: it is missing or cannot be read.
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
    """Return the tensors in a folder's safetensors file.

    Args:
        weights: the name of the file.
        config: the name of the file that belongs with it, for the error.

    Raises:
        ConfigError: it is missing or cannot be read.
    """
    path = existing(folder, weights, (config, weights))
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a safetensors file ({error}); export it again") from None


def existing(folder: Path, name: str, needed: Sequence[str]) -> Path:
    """Return the path of a file in a folder.

    Args:
        needed: the names of all files that the folder should have, for the error.

    Raises:
        ConfigError: the file does not exist.
    """
    if not (folder / name).is_file():
        raise ConfigError(f"{folder / name} does not exist; give a folder with {' and '.join(needed)}")
    return folder / name


def require(path: Path, config: Mapping[str, Any], *keys: str) -> None:
    """Check that an object read from `path` has keys.

    Raises:
        ConfigError: a key is missing.
    """
    for key in keys:
        if key not in config:
            raise ConfigError(f"{path} has no key {key}; export the dictionary again")


def check_shapes(
    path: Path, weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], said_by: str
) -> None:
    """Check that a file has tensors of the expected shapes.

    Args:
        said_by: the name of the file that the shapes come from.

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
