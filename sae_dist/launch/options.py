"""The config groups, with the options that there are."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_dist.config.plain import check_yaml, read_yaml
from sae_dist.core.errors import ConfigError
from sae_dist.core.place import launched, place
from sae_dist.core.text import print_line

DEFAULTS = "local/default.yaml"
"""In a folder conf: a person's own defaults, which no word of a command names."""
RESOLVER = re.compile(r"\$\{[^{}]*:")
SHOWN = 8
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


def check_own_files(folder: Path) -> None:
    """Check the user's own conf/ before it is read: its size, and that its defaults read no environment.

    Raises:
        ConfigError: a file has aliases or is too large, or the defaults would run a resolver of OmegaConf.
    """
    for group in groups():
        for file in sorted((folder / group).glob("*.yaml")):
            check_yaml(file)
    defaults = folder / DEFAULTS
    if defaults.is_file():
        check_yaml(defaults)
        if found := RESOLVER.search(defaults.read_text(encoding="utf-8", errors="replace")):
            raise ConfigError(
                f"{os.path.relpath(defaults)} has {found[0]}...}}, which reads more than the file itself; "
                "write the value, or put it into a file that your command names"
            )


def tell_defaults() -> None:
    """Say which keys the user's own defaults set, where there are any: no word of the command names them."""
    if launched() and place().rank:
        return
    for folder in conf_folders():
        file = folder / DEFAULTS
        if not file.is_file():
            continue
        try:
            content = read_yaml(file.read_text(encoding="utf-8", errors="replace"))
        except ValueError:
            continue  # composing names the line
        keys = list(_keys(content))
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        print_line(f"{os.path.relpath(file)} is obeyed: it sets {', '.join(keys[:SHOWN])}{more}")


def _keys(content: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
