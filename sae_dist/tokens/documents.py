"""Documents of local text: which pieces of which files there are, and their text.

A document is a byte range of a file, snapped to line ends, so that any document can be read without
reading what lies before it. Long files are cut into pieces: a lane reads whole documents, and one
file of 10 GB must feed every lane.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sae_dist.core.errors import DataError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
LINES_SUFFIX = ".jsonl"
PIECE_BYTES = 16384
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Document:
    """One readable piece of text.

    `key` names it on every machine (a path relative to the corpus, or a topic), `path` is the file
    (None: a topic of `pydoc_data`), `start` and `end` are byte offsets before snapping to lines. In a
    .jsonl file a document is one line, and its text the line's `text`.
    """

    key: str
    path: Path | None
    start: int
    end: int

    def text(self) -> str:
        """The document's text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataError: the file went away, or a line of a .jsonl file is not an object with a `text`.
        """
        if self.path is None:
            from pydoc_data.topics import topics

            return topics[self.key.removeprefix("pydoc_data/")]
        try:
            with open(self.path, "rb") as file:
                start = _snap(file, self.start)
                end = _snap(file, self.end)
                file.seek(start)
                text = file.read(end - start).decode("utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        return self._text_of_line(text) if self.path.suffix == LINES_SUFFIX else text

    def _text_of_line(self, line: str) -> str:
        if not line.strip():
            return ""
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise DataError(
                f'{self.path}: the line at byte {self.start} is not an object with a "text" that is a string'
            )
        return text


def _snap(file: BinaryIO, offset: int) -> int:
    """The first line start at or after `offset` (0 and the end of the file are line starts).

    A line that goes on for more than PIECE_BYTES is cut between two characters, so that a file without
    line ends is not one document.
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
    """Whether a key falls to evaluation: one in HELD_OUT_ONE_IN by hash, the same for every run."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def held_out(key: str) -> bool:
    """Whether a document is kept for evaluation: a hash of its file's name, the same for every run."""
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


def python_documents() -> list[Document]:
    """The text every Python carries: the standard library's sources and `pydoc_data.topics`.

    Encoding tables and the source form of the topics are left out (tables of numbers; the topics
    themselves are read instead), as is anything installed beside the standard library.
    """
    from pydoc_data.topics import topics

    found: list[Document] = []
    for key, path in python_sources():
        found += pieces(key, path)
    found += [Document(f"pydoc_data/{name}", None, 0, len(topics[name])) for name in sorted(topics)]
    return found


def python_sources() -> list[tuple[str, Path]]:
    """Files of the standard library's sources, each with the key of its documents, in order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"}
    paths = [path for path in sorted(python_files(root, skipped)) if 0 < path.stat().st_size < 1_000_000]
    return [(path.relative_to(root).as_posix(), path) for path in paths]


def python_files(root: Path, skipped: set[str]) -> Iterator[Path]:
    """All .py files under `root`, but for those in folders of these names, which are not even listed."""
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - skipped
        yield from (Path(folder, name) for name in names if name.endswith(".py"))
