"""The formats of exports and the names of their files, known without torch."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG, EXPORT

FILES = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt"),
    # A file of the same name as the config of a run.
    "circuit_tracer": (CONFIG, "layer_*.safetensors"),
    "gemma_scope": ("config.json", "params.npz"),
    "gemma_scope_2": ("config.json", "params.safetensors"),
    "qwen_scope": ("config.json", "layer*.sae.pt"),
}
"""Format -> the names of its config and of its weights."""
READ_ONLY = ("gemma_scope", "gemma_scope_2", "qwen_scope")
"""Formats that are imported, and not written."""
FILE_EACH = ("circuit_tracer", "qwen_scope")
"""Formats of which one folder holds a file for each of many layers."""
INDEX = ".index.json"
"""The end of the name of a file that says in which files weights are, in place of one."""
DEEPEST, MOST_FOLDERS, SHOWN_FOLDERS = 4, 5000, 4
LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")
"""The name of circuit-tracer's file of one layer."""
MODULE = re.compile(r"(?:\w+\.)*(?:layers|layer|h|blocks)\.\d+(?:\.\w+)*(?::in|:out)?")
OF_A_LAYER = (
    (re.compile(r"resid_post_layer_(\d+)"), "layers.{}"),
    (re.compile(r"(?:mlp_out|mlp)_layer_(\d+)"), "layers.{}.mlp"),
    (re.compile(r"(?:attn_out|attn|attention)_layer_(\d+)"), "layers.{}.self_attn"),
    (re.compile(r"layer_(\d+)(?:_.*)?"), "layers.{}"),
)
"""Names of folders in which others keep the dictionaries of a place -> that place."""


def format_of(place: Path) -> str:
    """Return the format whose weights a folder contains, or whose weights a file is.

    Raises:
        ConfigError: there is no such folder, or it contains the files of no format or of several; names the
            folders within that have them.
    """
    weights = {name: files[1] for name, files in FILES.items()}
    known = ", ".join(f"{file} ({name})" for name, file in weights.items())
    if place.is_file():
        named = [name for name, file in weights.items() if place.match(file)]
        if named:
            return named[0]
    if not place.is_dir():
        raise ConfigError(f"{place} is not a folder; give one with {known}")
    found = formats_in(place)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{place} contains the files of several formats; choose one with --format")
    within = sorted(_folders_within(place))
    if not within:
        raise ConfigError(f"{place} contains none of {known}")
    more = f" and {len(within) - SHOWN_FOLDERS} more" if len(within) > SHOWN_FOLDERS else ""
    raise ConfigError(
        f"{place} contains no dictionary itself; give a folder in it that does: "
        f"{', '.join(map(str, within[:SHOWN_FOLDERS]))}{more}"
    )


def formats_in(folder: Path) -> list[str]:
    """List the formats whose weights are in a folder, in one file or in several that an index names."""
    return [
        name
        for name, (_, file) in FILES.items()
        if any(folder.glob(file)) or (folder / f"{file}{INDEX}").is_file()
    ]


def _folders_within(folder: Path) -> Iterator[Path]:
    """Yield the folders within, a few levels down, that contain a dictionary."""
    for number, (path, names, _) in enumerate(os.walk(folder)):
        inside = Path(path)
        if number > MOST_FOLDERS:
            return
        if inside != folder and formats_in(inside):
            yield inside
        if len(inside.relative_to(folder).parts) >= DEEPEST:
            names.clear()


def proposed_hook(place: Path) -> str | None:
    """Return the hook that a dictionary's place on the disk suggests, such as `pythia/layers.3.mlp`."""
    for name in reversed(place.resolve().parts[-4:]):
        if MODULE.fullmatch(name):
            return name
        for pattern, hook in OF_A_LAYER:
            if match := pattern.fullmatch(name):
                return hook.format(match[1])
    return None


def start_folder(start: str) -> Path:
    """Return the folder of the export that training begins with.

    Args:
        start: `sae.start` as it is written, a run or an export.

    Raises:
        ConfigError: there is no such export.
    """
    config, weights = FILES["saelens"]
    folder = Path(start).expanduser()
    folder = folder / EXPORT if (folder / EXPORT / config).is_file() else folder
    if not (folder / config).is_file() or not (folder / weights).is_file():
        other = folder.is_dir() and formats_in(folder)
        how = f"; first: sae-dist import {start} name=NAME, then sae.start=outputs/NAME" if other else ""
        raise ConfigError(
            f"sae.start={start} has no {config} and {weights}; give a run that was exported, its export, or "
            f"what sae-dist import made of another format{how}"
        )
    return folder
