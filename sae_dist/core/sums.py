"""Checksums: of files, in lists beside them that `sha256sum -c` reads too, and of a text, within it.

A file that nobody else's program lists is not checked: lists are of what this program wrote.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.core.parsing import open_file

LIST = ".sha256"
"""The end of the name of a list: it is named as its first file, and that."""
PIECE_BYTES = 1 << 20
LONGEST_LIST_BYTES = 1 << 16
LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]{1,255})\n")
OPEN = "0" * 64
"""What stands in a text for its own checksum while that is computed."""
SUM = re.compile(r"[0-9a-f]{64}")


def checksum(path: Path, sync: bool = False) -> dict[str, Any]:
    """Return the size and sha256 of a file; with `sync`, once it is safely on the disk."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


@contextmanager
def listing(folder: Path, *lists: Sequence[str]) -> Iterator[None]:
    """List the checksums of files that the body writes; while it writes them, the lists are not there.

    Args:
        lists: the names of the files of each list.
    """
    for names in lists:
        (folder / f"{names[0]}{LIST}").unlink(missing_ok=True)
    yield
    for names in lists:
        lines = [f"{checksum(folder / name)['sha256']}  {name}\n" for name in names]
        write_text(folder / f"{names[0]}{LIST}", "".join(lines))


def check_listed(folder: Path, names: Iterable[str]) -> None:
    """Check the files of a folder against the lists that are named as one of them.

    Raises:
        ConfigError: a file is missing or is not what was written, or a list is damaged.
    """
    for name in names:
        path = folder / f"{name}{LIST}"
        if not path.is_file():
            continue
        for file, wanted in _read_list(path, name):
            if not file.is_file():
                raise ConfigError(f"{file} does not exist, and {path.name} lists it; copy the folder again")
            if checksum(file)["sha256"] != wanted:
                raise ConfigError(
                    f"{file} is not what was written: its sha256 is not that of {path.name}; copy it again, "
                    f"or remove {path.name} if it was changed on purpose"
                )


def listed(path: Path) -> str | None:
    """Return the sha256 of a file that the list named as it has; None: there is no such list.

    Raises:
        ConfigError: the list is damaged.
    """
    sums = path.with_name(f"{path.name}{LIST}")
    if not sums.is_file():
        return None
    return next(digest for file, digest in _read_list(sums, path.name) if file == path)


def _read_list(path: Path, name: str) -> list[tuple[Path, str]]:
    with open_file(path) as file:
        text = file.read(LONGEST_LIST_BYTES).decode("latin1")
    found = LINE.findall(text)
    whole = "".join(f"{digest}  {each}\n" for digest, each in found) == text
    if not whole or name not in [each for _, each in found]:
        raise ConfigError(f"{path} is not a list of checksums; copy the folder again, or remove it")
    return [(path.parent / each, digest) for digest, each in found]


def sealed(text: str) -> str:
    """Return a text with its checksum in place of the first `OPEN` in it."""
    assert OPEN in text
    return text.replace(OPEN, hashlib.sha256(text.encode()).hexdigest(), 1)


def is_sealed(text: str, digest: object) -> bool:
    """Return whether a text is what `sealed` returned; `digest` is the checksum that it holds."""
    if not isinstance(digest, str) or not SUM.fullmatch(digest) or text.count(digest) != 1:
        return False
    return hashlib.sha256(text.replace(digest, OPEN, 1).encode()).hexdigest() == digest
