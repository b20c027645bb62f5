"""Documents of local text: a file, a folder, or the text that comes with every Python."""

import hashlib
from pathlib import Path

import numpy as np

from sae_dist.tokens.documents import LINES_SUFFIX, PIECE_BYTES, Document, held_out, python_documents
from sae_dist.tokens.encoder import Encoder
from sae_dist.tokens.indexed import lowest_hashes
from sae_dist.tokens.kept import DocumentTokens
from sae_dist.tokens.text_files import text_files

MANY_FILES = 64
MIN_PIECE_BYTES = 1024
PIECES_WANTED = 1024


class PythonCorpus:
    """The standard library's sources and the topics of `pydoc_data`."""

    field = "tokens.path=null"

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self.all = python_documents()

    def __len__(self) -> int:
        return len(self.all)

    def held_out(self) -> np.ndarray:
        """Return a mask [documents] of those held out, which the embedded LLM was not trained on either."""
        return np.array([held_out(document.key) for document in self.all])

    def read(self, number: int) -> DocumentTokens:
        """Return the tokens of one document."""
        return DocumentTokens(self.encoder.ids(self.all[number].text()))

    def where(self, number: int) -> str:
        """Name a document for a person."""
        return self.all[number].where()


class FolderCorpus:
    """Pieces of the text files of a folder, or of one file; each line of a .jsonl file is a document.

    Small corpora are cut into smaller pieces, so that there are enough for the lanes. Only byte offsets are
    kept in memory; text is read on request.

    Raises:
        ConfigError: no such path, no text in it, or a file that cannot be read.
    """

    def __init__(self, path: str, encoder: Encoder):
        self.field = f"tokens.path={path}"
        self.encoder = encoder
        self.root = Path(path).expanduser()
        self.files = text_files(self.root, self.field)
        sizes = [file.stat().st_size for file in self.files]
        plain = sum(size for file, size in zip(self.files, sizes, strict=True) if file.suffix != LINES_SUFFIX)
        piece_bytes = min(max(plain // PIECES_WANTED, MIN_PIECE_BYTES), PIECE_BYTES)
        bounds = [
            _line_bounds(file) if file.suffix == LINES_SUFFIX else _piece_bounds(size, piece_bytes)
            for file, size in zip(self.files, sizes, strict=True)
        ]
        self.file_of = np.repeat(np.arange(len(bounds)), [len(each) - 1 for each in bounds])
        self.starts = np.concatenate([each[:-1] for each in bounds])
        self.ends = np.concatenate([each[1:] for each in bounds])

    def __len__(self) -> int:
        return len(self.starts)

    def held_out(self) -> np.ndarray:
        """Return a mask [documents] of those held out: whole files if there are many, else documents."""
        names = [file.relative_to(self.root).as_posix() for file in self.files]
        if len(self.files) >= MANY_FILES:
            return lowest_hashes(np.array([_hash(name) for name in names], np.uint64))[self.file_of]
        keys = [f"{names[f]}#{s}" for f, s in zip(self.file_of, self.starts, strict=True)]
        return lowest_hashes(np.array([_hash(key) for key in keys], np.uint64))

    def read(self, number: int) -> DocumentTokens:
        """Return the tokens of one document."""
        return DocumentTokens(self.encoder.ids(self.document(number).text()))

    def where(self, number: int) -> str:
        """Name a document for a person: its file, and the line in it."""
        return self.document(number).where()

    def document(self, number: int) -> Document:
        """Return the file and byte range of document `number`."""
        file = self.files[self.file_of[number]]
        key = f"{file.relative_to(self.root).as_posix()}#{self.starts[number]}"
        return Document(key, file, int(self.starts[number]), int(self.ends[number]), marked=True)


def _piece_bounds(size: int, piece_bytes: int) -> np.ndarray:
    """Return the byte offsets that cut `size` bytes into pieces; a file of 0 bytes has no pieces."""
    count = min(max(1, round(size / piece_bytes)), size)
    return np.array([size * i // max(count, 1) for i in range(count + 1)], np.int64)


def _line_bounds(file: Path) -> np.ndarray:
    """Return the byte offsets at which lines begin, and the file's length."""
    ends = [0]
    with open(file, "rb") as lines:
        for line in lines:
            ends.append(ends[-1] + len(line))
    return np.array(ends, np.int64)


def _hash(key: str) -> int:
    # Names of files may hold bytes that are not UTF-8.
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
