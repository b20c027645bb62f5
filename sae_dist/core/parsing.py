"""The door for what files say: JSON, with bounds that hold before they are parsed, and errors.

A file may be damaged, or made by somebody who means harm. Reading it ends in a value or in one line:
`reading` turns every error that a parser has for bytes into an error that names the file.
"""

import csv
import json
import math
import os
import re
import stat
import tarfile
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.text import first_line

MIB = 1 << 20
MOST_BYTES = 64 * MIB
"""The largest file of JSON that is read whole, unless the caller knows of larger ones."""
MOST_HEADER_BYTES = 4 * MIB
DEEPEST = 64
"""The most lists and objects within each other: later code walks through them by recursion."""
LARGEST = 1e100
LONGEST_REASON = 200
STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""A string of JSON, to its end or to that of the text, or a bracket: each text is passed over once."""


def parsing_errors() -> tuple[type[BaseException], ...]:
    """Return what parsers raise for bytes that are not what they should be."""
    from pickle import UnpicklingError
    from struct import error as StructError

    from omegaconf.errors import OmegaConfBaseException
    from safetensors import SafetensorError
    from yaml import YAMLError

    # RuntimeError is torch's, and NotImplementedError and RecursionError; ArithmeticError is of sizes.
    values = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, MemoryError)
    texts = (SyntaxError, tokenize.TokenError, YAMLError, OmegaConfBaseException, csv.Error)
    binary = (UnpicklingError, StructError, SafetensorError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
    return (*values, *texts, *binary, EOFError, OSError)


@contextmanager
def reading(
    what: object,
    how: str,
    kind: Callable[[str], BaseException] = ConfigError,
    passed: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """Turn whatever goes wrong with the content of a file in the body into one line.

    Args:
        what: the beginning of the line: the file, or the key and value that name it.
        how: the rest of it, with the reason in place of `{reason}`.
        kind: makes the error of the line.
        passed: errors of the body that are no parser's.

    Raises:
        ConfigError: or what `kind` makes; errors of this program in the body are passed on.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (SaeDistError, *passed)) or not isinstance(error, parsing_errors()):
            raise
        raise kind(f"{what} {how.replace('{reason}', reason_of(error))}") from None


@contextmanager
def without_panics(what: str) -> Iterator[None]:
    """Turn the end of a library in Rust into one line: tokenizers panic over a file of a model.

    Args:
        what: the beginning of the line.

    Raises:
        ConfigError: it ended so; that is no Exception, so nothing else would catch it.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise ConfigError(f"{what} failed: {first_line(error)}") from None


def reason_of(error: BaseException) -> str:
    """Return in a few words what a parser did not like."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text in UTF-8: {error.reason} at byte {error.start}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = first_line(error)
    found = f"it has no {found}" if isinstance(error, KeyError) else found
    return found if len(found) <= LONGEST_REASON else found[:LONGEST_REASON] + "..."


def open_file(path: Path, *, pipes: bool = False) -> BinaryIO:
    """Open a file to read its bytes; a pipe, which a folder may hold, would be waited for without end.

    Args:
        pipes: open them, too: one that a person names, such as `<(command)`, has an end.

    Raises:
        ConfigError: it is no file.
        OSError: it cannot be read.
    """
    file = open(path, "rb", opener=None if pipes else _without_waiting)  # noqa: SIM115
    if pipes or stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ConfigError(f"{path} is a pipe or a device, and no file; remove it")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_bounded(path: Path, most: int = MOST_BYTES, *, pipes: bool = False) -> bytes:
    """Return the bytes of a file that is no longer than it may be; `pipes` as in `open_file`.

    Raises:
        ConfigError: it is no file.
        OSError: it cannot be read.
        ValueError: it is longer.
    """
    with open_file(path, pipes=pipes) as file:
        return read_stream(file, most)


def read_stream(stream: Any, most: int) -> bytes:
    """Return all bytes of a stream.

    Raises:
        OSError: it cannot be read.
        ValueError: there are more than `most`.
    """
    found = bytearray()
    # A single read of what there may be at most would ask for memory for all that.
    while piece := stream.read(MIB):
        found += piece
        if len(found) > most:
            raise ValueError(f"it has more than {most // MIB:,} MiB")
    return bytes(found)


def check_header(path: Path) -> None:
    """Check that the header of a safetensors file is of a few tensors: it is made objects of as a whole.

    Raises:
        OSError: it cannot be read.
        ValueError: it is longer than that.
    """
    with open_file(path) as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MOST_HEADER_BYTES:
        raise ValueError(f"its header would have {size:,} bytes")


def check_archive(archive: zipfile.ZipFile, size: int, times: int) -> None:
    """Check what the directory of a zip archive says of its entries, before one is read.

    Args:
        size: bytes of the archive; times: how many times as much it may unpack to.

    Raises:
        ValueError: an entry would be longer than the archive, or all of them unpack to more.
    """
    entries = archive.infolist()
    if longest := max((entry.compress_size for entry in entries if entry.compress_size > size), default=0):
        raise ValueError(f"an entry of it would have {longest:,} bytes")
    if (unpacked := sum(entry.file_size for entry in entries)) > times * size:
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Return what a text of JSON says; bytes are UTF-8, with or without a byte order mark.

    Args:
        unique: refuse an object with a key twice, of which the parser would take the last.

    Raises:
        ValueError: it is not JSON, is nested deeper than `DEEPEST`, or has a key twice.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(text)
    return json.loads(text, object_pairs_hook=_without_twice if unique else None)


def _check_depth(text: str) -> None:
    depth = 0
    for found in STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice} is there twice")
    return found


def check_numbers(value: Any) -> None:
    """Check that no number in what JSON said is larger than any that is measured or counted.

    Raises:
        ValueError: one is; drawn or printed it would overflow.
    """
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list):
            left += each
        elif isinstance(each, int | float) and abs(each) > LARGEST and each not in (math.inf, -math.inf):
            raise ValueError(f"it has a number of more than {LARGEST:g}")
