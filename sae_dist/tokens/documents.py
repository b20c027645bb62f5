"""Documents of local text: how files are cut into documents, and how the text of one is read.

A document is a byte range of a file, snapped to line ends, so that any document can be read without
reading what lies before it. Long files are cut into pieces: a lane reads whole documents, and one
file of 10 GB must feed every lane.
"""

import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sae_dist.core.errors import DataError
from sae_dist.core.parsing import parse_json
from sae_dist.tokens.kept import UnusableDocument

LINES_SUFFIX = ".jsonl"
PIECE_BYTES = 16384
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Document:
    """A piece of text that can be read by itself.

    `key` names it on every machine (a path relative to the corpus, or a topic), `path` is the file
    (None: a topic of `pydoc_data`), `start` and `end` are byte offsets before snapping to lines. In a
    .jsonl file a document is one line, and its text is the line's `text`. `marked`: the file may begin with
    a byte order mark, which is no text.
    """

    key: str
    path: Path | None
    start: int
    end: int
    marked: bool = False

    def text(self) -> str:
        """Read the document's text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UnusableDocument: a line of a .jsonl file is not an object with a `text`.
            DataError: the file was removed or cut.
        """
        if self.path is None:
            from pydoc_data.topics import topics

            return topics[self.key.removeprefix("pydoc_data/")]
        try:
            with open(self.path, "rb") as file:
                if (size := os.fstat(file.fileno()).st_size) < self.end:
                    raise DataError(
                        f"{self.path} was changed since the run began: it has {size} bytes, and had at least "
                        f"{self.end}; put it back as it was, and go on"
                    )
                start = _snap(file, self.start)
                end = _snap(file, self.end)
                file.seek(start)
                text = file.read(end - start).decode("utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        if self.marked and not self.start:
            text = text.removeprefix("\ufeff")
        return self._text_of_line(text) if self.path.suffix == LINES_SUFFIX else text

    def where(self) -> str:
        """Name the document for a person: its file, and the line in it."""
        if self.path is None:
            return self.key
        with open(self.path, "rb") as file:
            line, left = 1, _snap(file, self.start)
            file.seek(0)
            while left > 0 and (part := file.read(min(left, 1 << 20))):
                line += part.count(b"\n")
                left -= len(part)
        return f"{self.path}, line {line}"

    def _text_of_line(self, line: str) -> str:
        if not line.strip():
            return ""
        try:
            text = parse_json(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise UnusableDocument('is not an object with a "text" that is a string')
        return text


def _snap(file: BinaryIO, offset: int) -> int:
    """Return the first line start at or after `offset` (0 and the end of the file are line starts).

    A line longer than PIECE_BYTES is cut between two characters, so that a file without line ends is not one
    document.
    """
    if offset == 0:
        return 0
    file.seek(offset - 1)
    line = file.readline(PIECE_BYTES)
    at = file.tell()
    if not line.endswith(b"\n"):
        following = file.read(3)
        at += next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))
    return at


def is_held_out(key: str) -> bool:
    """Return whether a key is held out: one in HELD_OUT_ONE_IN by hash, the same in every run."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def held_out(key: str) -> bool:
    """Return whether a document is held out for evaluation, decided by a hash of its file's name alone."""
    return is_held_out(key.split("#")[0])


def pieces(key: str, path: Path, piece_bytes: int = PIECE_BYTES) -> list[Document]:
    """Cut one file into documents of about `piece_bytes` bytes."""
    size = path.stat().st_size
    count = max(1, round(size / piece_bytes))
    bounds = [size * i // count for i in range(count + 1)]
    return [
        Document(f"{key}#{i}", path, bounds[i], bounds[i + 1])
        for i in range(count)
        if bounds[i + 1] > bounds[i]
    ]


@functools.cache
def python_documents() -> tuple[Document, ...]:
    """List the documents that every Python has: the standard library's sources and `pydoc_data.topics`.

    Encoding tables (tables of numbers), the source form of the topics (the topics themselves are read
    instead) and packages installed next to the standard library are left out. A run asks for them several
    times before its first step; they are listed once, as thousands of files are looked at.
    """
    from pydoc_data.topics import topics

    found: list[Document] = []
    for key, path in python_sources():
        found += pieces(key, path)
    found += [Document(f"pydoc_data/{name}", None, 0, len(topics[name])) for name in sorted(topics)]
    return tuple(found)


def python_sources() -> list[tuple[str, Path]]:
    """List the source files of the standard library in order, each with the key of its documents."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"}
    paths = [path for path in sorted(python_files(root, skipped)) if 0 < path.stat().st_size < 1_000_000]
    return [(path.relative_to(root).as_posix(), path) for path in paths]


def python_files(root: Path, skipped: set[str]) -> Iterator[Path]:
    """Yield all .py files under `root`; folders with a name in `skipped` are not entered."""
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - skipped
        yield from (Path(folder, name) for name in names if name.endswith(".py"))
