"""Files that are complete or absent: written under another name, then renamed."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.core.parsing import check_numbers, parse_json, read_bounded, reading

if TYPE_CHECKING:
    from torch import Tensor


TEMPORARY = ".tmp"
"""The end of the name, which begins with a dot, of what is not complete yet."""
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
BROKEN = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE)
WRITING = (*FULL, *REFUSED, *BROKEN, errno.EFBIG)
"""What goes wrong with files for reasons outside of this program."""


def remedy(error: OSError) -> str:
    """Return what to do about an error of writing; empty where its number does not tell."""
    if error.errno in FULL:
        return "make room"
    if error.errno in REFUSED:
        return "make it writable"
    if error.errno in BROKEN:
        return "look at the disk, or at the network to it"
    return "raise the limit on the size of files (ulimit -f)" if error.errno == errno.EFBIG else ""


def in_words(error: OSError) -> str:
    """Return what the system said, and of which file, such as `Input/output error (run/metrics.jsonl)`."""
    said = error.strerror or type(error).__name__
    return f"{said} ({error.filename})" if error.filename else said


@contextmanager
def replacing(path: Path, *, synced: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; after the body it is renamed to `path`, after an error removed.

    Args:
        synced: bring the content to the disk before the rename, so that both survive a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        if synced:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            # The system names no file that was open already; and a person knows it by its own name.
            error.filename, error.filename2 = str(path), None
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed left half written; only for whoever owns the folder."""
    for parent, folders, files in os.walk(folder):
        for name in [each for each in folders if _is_temporary(each)]:
            folders.remove(name)
            shutil.rmtree(Path(parent) / name)
        for name in filter(_is_temporary, files):
            (Path(parent) / name).unlink(missing_ok=True)


def _is_temporary(name: str) -> bool:
    # The second: the safetensors library's own, `.tmpAb12Cd`.
    return name.startswith(".") and name.endswith(TEMPORARY) or name.startswith(TEMPORARY)


def sync(path: Path) -> None:
    """Make a file's content, or the renames within a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, synced: bool = False) -> None:
    """Write a text file, complete or absent; `synced` as in `replacing`."""
    with replacing(path, synced=synced) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, complete or absent."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object that a JSON file holds; None: there is no file, or no object in it.

    Raises:
        ConfigError: it is not JSON.
    """
    if not path.is_file():
        return None
    with reading(path, "is not JSON ({reason}); remove it, or write it again"):
        found = parse_json(read_bounded(path))
        check_numbers(found)
    return found if isinstance(found, dict) else None


def write_tensors(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, complete or absent, that whoever may read other new files may read.

    The library's own files, since 0.6, are their owner's alone.

    Raises:
        OSError: the disk is full or broken; the library itself tells that as an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(dict(tensors), temporary, metadata)
        except SafetensorError as error:
            if (found := re.search(r"os error (\d+)", str(error))) is None:
                raise
            number = int(found[1])
            raise OSError(number, os.strerror(number)) from None
        temporary.chmod(mode)
