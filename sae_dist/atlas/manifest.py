"""The manifest of an atlas: what it is of, what is in it, and the checksums of its files. Written last."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.atlas.schema import MANIFEST
from sae_dist.config.plain import fitting
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json, write_json

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The facts of a complete atlas.

    Attributes:
        kind, num_latents, k: of the dictionary; k is None where it selects nothing.
        model, hook, target_hook, context: what it was trained on.
        dictionary: sha256 of the file with its weights.
        text: what was read, in words.
        tokens, documents: places, special tokens included, and documents of the text.
        kept, left_out, outliers: places by state; see `atlas.schema`.
        postings: codes above zero.
        silent: latents that never fired; too_rare: others that fired fewer than `few` times.
        top, bins, each, few: as asked; see `config.atlas`.
        lens: on how many positions the mean Jacobian was fitted, or why it was not.
        effects, near: why there are no effects on logits, or no nearest rows; None: there are.
        files: sha256 of each file of the tables, by its path in the folder.
    """

    version: int
    kind: str
    num_latents: int
    k: int | None
    model: str
    hook: str
    target_hook: str | None
    context: int | None
    dictionary: str
    text: str
    tokens: int
    documents: int
    kept: int
    left_out: int
    outliers: int
    postings: int
    silent: int
    too_rare: int
    top: int
    bins: int
    each: int
    few: int
    lens: str
    effects: str | None
    near: str | None
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the manifest: from now on the atlas is complete."""
        write_json(folder / MANIFEST, dataclasses.asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an atlas.

    Raises:
        ConfigError: there is none, it is damaged, or of a later version.
    """
    path = folder / MANIFEST
    found = read_json(path)
    if found is None:
        unfinished = "is unfinished: go on with resume=auto" if folder.is_dir() else "does not exist"
        raise ConfigError(f"{folder} {unfinished}; sae-dist atlas {folder.parent} makes it")
    if found.get("version") != VERSION:
        raise ConfigError(f"{path} has version {found.get('version')!r:.20}; this program reads {VERSION}")
    hints = typing.get_type_hints(Manifest)
    try:
        if set(found) != set(hints):
            raise ValueError(f"its keys are not {', '.join(hints)}")
        values = {key: _value(found[key], hint, key) for key, hint in hints.items()}
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; make the atlas again") from None
    return Manifest(**values)


def _value(value: Any, hint: Any, key: str) -> Any:
    if key != "files":
        found = fitting(value, hint, key)
        if isinstance(found, int) and found < 0:
            raise ValueError(f"{key}={found} is below 0")
        return found
    texts = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    if not texts or any(Path(name).is_absolute() or ".." in Path(name).parts for name in value):
        raise ValueError("files is no table of paths and checksums")
    return value
