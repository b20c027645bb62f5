"""The keys of a run, and the config groups with the options that there are."""

import dataclasses
import functools
import typing
from pathlib import Path
from typing import Any

from sae_dist.config.run import RunConfig

PACKAGE = Path(__file__).parents[1]


def data_folder(name: str) -> Path:
    """Return the folder `conf` or `slurm`: inside an installed package, at the top of a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def conf_folders() -> list[Path]:
    """Return the package's `conf`, and the user's own in the current folder if there is one."""
    ours, theirs = data_folder("conf").resolve(), Path("conf").resolve()
    return [ours, theirs] if theirs.is_dir() and theirs != ours else [ours]


def option_files() -> dict[str, dict[str, Path]]:
    """Return the config groups with the files of their options; the user's own add to the package's."""
    ours = data_folder("conf")
    found: dict[str, dict[str, Path]] = {path.name: {} for path in sorted(ours.iterdir()) if path.is_dir()}
    for folder in reversed(conf_folders()):
        for group, options in found.items():
            options |= {file.stem: file for file in sorted((folder / group).glob("*.yaml"))}
    return {group: dict(sorted(options.items())) for group, options in found.items()}


def groups() -> dict[str, list[str]]:
    """Return the config groups with the names of their options."""
    return {group: list(options) for group, options in option_files().items()}


@functools.cache
def schema(node: Any = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return every key of a run, dotted, with its type; a section has its dataclass. For reading only."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(node).items():
        found[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            found |= schema(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found
