"""The local files of a Hugging Face dataset: found, and looked at before the library reads them.

The library reads a file of JSON lines in large parts, and gives up the file for one line that it cannot read.
So files of moderate size are read whole before a run begins; of larger ones the first lines are.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import parse_json

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".txt")
JSON_LINES = (".json", ".jsonl", ".ndjson")
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK")
"""What compressed files begin with; the library unpacks them."""
READ_WHOLE_BYTES = 256 << 20
LOOKED_AT_BYTES = 1 << 30
HEAD_LINES = 8
SAVED = ("state.json", "dataset_dict.json")
"""Files by which a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote is known."""


def is_saved(cfg: TokensConfig) -> bool:
    """Return whether `tokens.dataset` is a folder that `save_to_disk` wrote."""
    return cfg.data_files is None and any((Path(cfg.dataset or "") / name).is_file() for name in SAVED)


def local_files(cfg: TokensConfig) -> list[Path]:
    """List the files of a dataset that are on this machine, in order; none of a dataset of the Hub."""
    if cfg.data_files is not None:
        root = Path(cfg.dataset or "")
        patterns = [cfg.data_files, str(root / cfg.data_files)] if root.is_dir() else [cfg.data_files]
        found = [each for pattern in patterns for each in glob.glob(pattern, recursive=True)]
        return sorted(Path(each) for each in set(found) if os.path.isfile(each))
    root = Path(cfg.dataset or "").expanduser()
    if not cfg.dataset or not root.is_dir():
        return []
    return sorted(each for each in root.rglob("*") if each.name.endswith(SUFFIXES) and each.is_file())


def check_files(cfg: TokensConfig, field: str) -> None:
    """Check the files of a dataset, as far as they can be looked at.

    Raises:
        ConfigError: one is damaged, or has no such column.
    """
    if is_saved(cfg):
        return
    left = READ_WHOLE_BYTES
    for file in local_files(cfg):
        if file.suffix == ".parquet":
            _check_parquet(file, cfg.column, field)
        elif file.suffix in JSON_LINES and _is_lines(file):
            size = file.stat().st_size
            problem = first_bad_line(file, None if size <= left else HEAD_LINES)
            left -= size
            if problem is not None:
                raise ConfigError(f"{field}: {problem}; mend it, or leave it out of tokens.data_files")


def culprit(cfg: TokensConfig) -> str | None:
    """Name the first line that no JSON reader accepts, once one of them has failed; None: none is found."""
    left = LOOKED_AT_BYTES
    for file in local_files(cfg):
        left -= file.stat().st_size
        if left < 0:
            return None
        if file.suffix in JSON_LINES and _is_lines(file) and (problem := first_bad_line(file, None)):
            return problem
    return None


def first_bad_line(file: Path, most: int | None) -> str | None:
    """Name the first line of a file that is no JSON, or no text, with the reason; None: there is none.

    Args:
        most: lines to look at; None: all.
    """
    for number, line in enumerate(_lines(file), 1):
        if most is not None and number > most:
            return None
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip() and _has_half_pairs(parse_json(text)):
                return f"{file}, line {number} has half of a surrogate pair, which is no character"
        except UnicodeDecodeError as error:
            return f"{file}, line {number} is not UTF-8 (0x{line[error.start]:02x})"
        except ValueError as error:
            return f"{file}, line {number} is not JSON ({error})"
    return None


def _lines(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        yield from opened


def _is_lines(file: Path) -> bool:
    """Return whether a file holds an object in each line: not one large value, nor something compressed."""
    with open(file, "rb") as opened:
        head = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if file.suffix != ".json":
        return not head.startswith(COMPRESSED)
    first = head.split(b"\n")[0].rstrip()
    return head.startswith(b"{") and (len(head) < 2 or first.endswith(b"}") or len(first) > 1000)


def _has_half_pairs(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= each <= "\udfff" for each in value) if not value.isascii() else False
    if isinstance(value, dict):
        return any(map(_has_half_pairs, value.values()))
    return isinstance(value, list) and any(map(_has_half_pairs, value))


def _check_parquet(file: Path, column: str, field: str) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(file).names
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{field}: {file} is not a readable parquet file: {error}") from None
    if column not in names:
        raise ConfigError(
            f"tokens.column={column} is not a column of {file}; its columns: {', '.join(names)}"
        )
