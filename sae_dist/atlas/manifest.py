"""The manifest of an atlas: what it is of, what is in it, and the checksums of its files. Written last."""

import dataclasses
import hashlib
import json
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.atlas.schema import MANIFEST
from sae_dist.config.plain import fitting
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.core.parsing import parse_json, read_bounded, reading
from sae_dist.core.sums import OPEN, checksum, is_sealed, sealed

VERSION = 1
SEAL = "seal"
"""The key of the manifest's own checksum."""
TAIL_BYTES, LONGEST_FOOTER_BYTES = 8, 1 << 30


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
        footers: sha256 of the end of each, where it says what is where; pages have sums of their own.
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
    footers: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the manifest, with a checksum of itself: from now on the atlas is complete."""
        write_text(folder / MANIFEST, sealed_json(dataclasses.asdict(self)))


def sealed_json(values: dict[str, Any]) -> str:
    """Return the text of a manifest with these values, which `read_manifest` takes for sound."""
    return sealed(json.dumps({SEAL: OPEN} | values, indent=1) + "\n")


def sums_of(path: Path) -> tuple[str, str]:
    """Return the sha256 of a Parquet file, and that of its footer."""
    return checksum(path)["sha256"], footer_sum(path)


def footer_sum(path: Path) -> str:
    """Return the sha256 of a Parquet file's footer, which says what is where in it, and of its first bytes.

    Raises:
        ValueError: the file is too short, or says that its footer is longer than it is.
    """
    with open(path, "rb") as file:
        first = file.read(TAIL_BYTES // 2)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        length = int.from_bytes(file.read(4), "little") + TAIL_BYTES
        if not TAIL_BYTES < length <= min(size, LONGEST_FOOTER_BYTES):
            raise ValueError("it ends in the middle")
        file.seek(size - length)
        return hashlib.sha256(first + file.read(length)).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an atlas.

    Raises:
        ConfigError: there is none, it is damaged, or of a later version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = "is unfinished: go on with resume=auto" if folder.is_dir() else "does not exist"
        raise ConfigError(f"{folder} {unfinished}; sae-dist atlas {folder.parent} makes it")
    with reading(path, "is damaged ({reason}); make the atlas again"):
        text = read_bounded(path).decode("utf-8")
        found = parse_json(text)
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    if found.get("version") != VERSION:
        raise ConfigError(f"{path} has version {found.get('version')!r:.20}; this program reads {VERSION}")
    hints = typing.get_type_hints(Manifest)
    try:
        if not is_sealed(text, found.pop(SEAL, None)):
            raise ValueError("its checksum is another")
        if set(found) != set(hints):
            raise ValueError(f"its keys are not {', '.join(hints)}")
        values = {key: _value(found[key], hint, key) for key, hint in hints.items()}
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; make the atlas again") from None
    return Manifest(**values)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file of an atlas with its checksum, which reads all of them.

    Raises:
        ConfigError: a file is missing, or is not what was written.
    """
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; make the atlas again")
        if checksum(path)["sha256"] != wanted:
            raise ConfigError(f"{path} is not what was written: its sha256 is another; make the atlas again")


def _value(value: Any, hint: Any, key: str) -> Any:
    if key not in ("files", "footers"):
        found = fitting(value, hint, key)
        if isinstance(found, int) and found < 0:
            raise ValueError(f"{key}={found} is below 0")
        return found
    texts = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    if not texts or any(Path(name).is_absolute() or ".." in Path(name).parts for name in value):
        raise ValueError(f"{key} is no table of paths and checksums")
    return value
