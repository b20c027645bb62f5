"""Functions that read and check the files of exports; a faulty file becomes an error of one line."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import check_header, parse_json, read_bounded, reading
from sae_dist.core.text import quoted
from sae_dist.export.keys import OBJECT, Table, checked
from sae_dist.export.names import INDEX

LFS = b"version https://git-lfs.github.com/spec/"
"""The beginning of a file that stands for a large one in a Git repository."""
WHOLE = (torch.int32, torch.int64)


def read_json(folder: Path, config: str, weights: str, table: Table) -> dict[str, Any]:
    """Return the object in a folder's JSON file.

    Args:
        config: the name of the file.
        weights: the name of the file that belongs with it, for the error.
        table: the types of its keys, see `export.keys`.

    Raises:
        ConfigError: it is missing, cannot be read, or a key in it is of another type.
    """
    path = existing(folder, config, (config, weights))
    return checked(path, json_object(path), table)


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, with or without a byte order mark.

    Raises:
        ConfigError: it cannot be read, holds none, or has a key twice.
    """
    with reading(path, "is not JSON ({reason}); export the dictionary again"):
        found = parse_json(read_bounded(path), unique=True)
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no keys; export the dictionary again")
    return found


def read_safetensors(folder: Path, weights: str, config: str) -> dict[str, Tensor]:
    """Return the tensors in a folder's safetensors file, or in the files that an index in its place names.

    Args:
        weights: the name of the file.
        config: the name of the file that belongs with it, for the error.

    Raises:
        ConfigError: it is missing or cannot be read.
    """
    found: dict[str, Tensor] = {}
    for path in weight_files(folder, weights, config):
        with reading(path, "is not a safetensors file ({reason}); export it again"):
            check_header(path)
            found |= load_file(path)
    return found


def weight_files(folder: Path, weights: str, config: str) -> list[Path]:
    """Return the files that hold a folder's weights.

    Raises:
        ConfigError: one is missing, or is outside of the folder.
    """
    index = folder / f"{weights}{INDEX}"
    if (folder / weights).is_file() or not index.is_file():
        return [existing(folder, weights, (config, weights))]
    places = checked(index, json_object(index), {"weight_map": OBJECT}).get("weight_map", {})
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name:
            raise ConfigError(f"{index} names a file outside of its folder, {name}; use one that you trust")
    return [existing(folder, name, names) for name in names]


def existing(folder: Path, name: str, needed: Sequence[str]) -> Path:
    """Return the path of a file in a folder.

    Args:
        needed: the names of all files that the folder should have, for the error.

    Raises:
        ConfigError: the file does not exist, or only a pointer to it.
    """
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give a folder with {' and '.join(needed)}")
    try:
        with open(path, "rb") as file:
            pointer = file.read(len(LFS)) == LFS
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if pointer:
        raise ConfigError(
            f"{path} is a pointer of Git LFS, not the file itself; fetch it: git -C {quoted(folder)} lfs pull"
        )
    return path


def require(path: Path, config: Mapping[str, Any], *keys: str) -> None:
    """Check that an object read from `path` has keys.

    Raises:
        ConfigError: a key is missing, or null.
    """
    for key in keys:
        if key not in config:
            raise ConfigError(f"{path} has no key {key}; export the dictionary again")


def floats(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return floating-point tensors as float32, and others as they are: `check_shapes` refuses them."""
    return {name: each.float() if each.is_floating_point() else each for name, each in weights.items()}


def check_shapes(
    path: Path,
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    said_by: str,
    whole: Iterable[str] = (),
) -> None:
    """Check that a file has tensors of floating-point numbers, of the expected shapes.

    Args:
        said_by: the name of the file that the shapes come from.
        whole: names of tensors that may hold whole numbers, too.

    Raises:
        ConfigError: one is missing, of another shape or dtype, or transposed.
    """
    for name, shape in shapes.items():
        if name not in weights:
            raise ConfigError(f"{path} has no tensor {name}; it has {', '.join(sorted(weights))}")
        found = list(weights[name].shape)
        if found != list(shape):
            turned = "; it is transposed" if found == list(shape)[::-1] else ""
            raise ConfigError(f"{path}: {name} has shape {found}, {said_by} says {list(shape)}{turned}")
        dtype = weights[name].dtype
        if not (dtype.is_floating_point or name in whole and dtype in WHOLE):
            raise ConfigError(
                f"{path}: {name} holds {str(dtype).removeprefix('torch.')}, and must hold floating-point "
                "numbers; export the dictionary again"
            )


def check_k(path: Path, k: float, num_latents: int) -> int:
    """Return the number of latents per row.

    Raises:
        ConfigError: it is no whole number, or more than there are latents.
    """
    if not math.isfinite(k) or k != int(k) or not 0 < k <= num_latents:
        raise ConfigError(f"{path}: k={k} must be a whole number from 1 to the {num_latents} latents")
    return int(k)
