"""The places that a Hugging Face dataset is read from: addresses that only read, and its own folder.

The library hands addresses to fsspec, of whose systems some run what a file says (`reference:` fills in
templates), and a folder's README.md may name files anywhere.
"""

import os
import re
from pathlib import Path
from typing import Any

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json
from sae_dist.core.parsing import reading

SYSTEMS = (
    "file local hf http https s3 s3a gs gcs az abfs abfss adl zip gzip tar bz2 xz zstd lz4 simplecache"
).split()
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?=://|::|$)")
STATE, SPLITS = "state.json", "dataset_dict.json"


def check_addresses(cfg: TokensConfig) -> None:
    """Check that a dataset and its files are on systems of fsspec that only read.

    Raises:
        ConfigError: one is on another.
    """
    for key, value in (("tokens.dataset", cfg.dataset), ("tokens.data_files", cfg.data_files)):
        if value is None or "://" not in value and "::" not in value:
            continue
        for part in value.split("::"):
            found = ADDRESS.match(part)
            if found and ("://" in part or part != value.split("::")[-1]) and found[1].lower() not in SYSTEMS:
                raise ConfigError(
                    f"{key}={value} is an address of {found[1]}, which is not read here; use one of "
                    f"{', '.join(SYSTEMS)}"
                )


def check_confined(cfg: TokensConfig, field: str) -> None:
    """Check that the card of a dataset's folder, README.md, names files of that folder alone.

    Raises:
        ConfigError: it names others, or cannot be read.
    """
    root = Path(cfg.dataset or "").expanduser()
    if cfg.data_files is not None or not root.is_dir():
        return
    import datasets

    with reading(field, "cannot be loaded: {reason}"):
        builder = datasets.load_dataset_builder(str(root), cfg.subset)
    home = os.path.abspath(root)
    for files in (builder.config.data_files or {}).values():
        for file in map(str, files):
            if "://" in file or not Path(os.path.abspath(file)).is_relative_to(home):
                raise ConfigError(
                    f"{field}: its README.md names a file outside of the folder, {file}; if you trust it, "
                    "give tokens.data_files"
                )


def check_saved(cfg: TokensConfig, field: str) -> None:
    """Check that what `save_to_disk` wrote names files of its own folder alone.

    Raises:
        ConfigError: it names others, or cannot be read.
    """
    root = Path(cfg.dataset or "").expanduser()
    splits = (read_json(root / SPLITS) or {}).get("splits", [])
    states = [root, *(root / each for each in splits if _is_name(each))]
    names = [*splits, *(each for state in states for each in _files(read_json(state / STATE) or {}))]
    for name in names:
        if not _is_name(name):
            raise ConfigError(f"{field} names a file outside of its folder, {name}; save the dataset again")


def _files(state: dict[str, Any]) -> list[Any]:
    found = state.get("_data_files")
    found = found if isinstance(found, list) else []
    return [each.get("filename") for each in found if isinstance(each, dict)]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).name == value
