"""The files of a text: found below a folder, links followed, and looked at before a run begins."""

import codecs
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import parse_json
from sae_dist.core.text import print_line
from sae_dist.tokens.documents import LINES_SUFFIX

SUFFIXES = (".txt", ".md", ".rst", ".py", LINES_SUFFIX)
HEAD_BYTES = 4096
LONGEST_LINE_BYTES = 1 << 24
MOST_VISITS = 100
"""Of a folder, by several links: folders that link to one another have as many paths as orders."""
MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks of encodings that are not UTF-8, longest first."""


def text_files(root: Path, field: str, *, say_links: bool = False) -> list[Path]:
    """List the files of a text, one file or those of a folder, in order, and look at the head of each.

    Args:
        field: the key and value that name it, for messages.
        say_links: say on stderr where links lead out of the folder: it may be somebody else's.

    Raises:
        ConfigError: no such path, no text in it, a link that leads nowhere, links that lead to one folder
            again and again, or a file that cannot be read or whose head is not UTF-8 text (in a .jsonl file,
            whose first line is not an object with a text).
    """
    if not os.path.exists(root):
        lost = f"is a link to {os.readlink(root)}, which is not there" if root.is_symlink() else None
        raise ConfigError(f"{field} {lost or 'does not exist'}; give a file or folder of text")
    if root.is_file():
        files = [root]
    else:
        if not os.access(root, os.R_OK | os.X_OK):
            raise ConfigError(f"{field} cannot be read; check its permissions")
        files = sorted(_below(root, field))
        for link in _leading_out(root, files) if say_links else ():
            print_line(f"{field}: {link} is a link: text is read from {os.path.realpath(link)}")
    if not files:
        raise ConfigError(f"{field} has no text in it; expected files ending in {', '.join(SUFFIXES)}")
    for file in files:
        if not os.access(file, os.R_OK):
            raise ConfigError(f"{field}: {file} cannot be read; check its permissions")
    if not any(file.stat().st_size for file in files):
        raise ConfigError(f"{field} holds only empty files; give a file or folder of text")
    for file in files:
        if (problem := _head_problem(file)) is not None:
            raise ConfigError(f"{field}: {file} {problem}")
    return files


def _below(root: Path, field: str) -> Iterator[Path]:
    """Yield the text files below a folder, in linked folders too; no folder twice on one way down."""
    visits = Counter[str]()
    seen: dict[Path, tuple[str, ...]] = {root: (os.path.realpath(root),)}
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        above = seen.pop(here)
        for name in list(folders):
            real = os.path.realpath(here / name)
            visits[real] += 1
            if visits[real] > MOST_VISITS:
                raise ConfigError(f"{field}: links lead to {real} more than {MOST_VISITS} times; remove some")
            if real in above:
                folders.remove(name)
            else:
                seen[here / name] = (*above, real)
        for path in (here / name for name in names):
            # Editors lock a file by a hidden link to nothing.
            if path.is_symlink() and not path.exists() and not path.name.startswith("."):
                raise ConfigError(
                    f"{field}: {path} is a link to {os.readlink(path)}, which is not there; remove the link, "
                    "or put back what it leads to"
                )
            if path.suffix in SUFFIXES and path.is_file():
                yield path


def _leading_out(root: Path, files: list[Path]) -> list[Path]:
    """List the links below a folder that text outside of it is read by."""
    home, found, inside = os.path.realpath(root), set[Path](), set[Path]()
    for file in files:
        for path in (*[each for each in file.parents if root in each.parents][::-1], file):
            if path in found:
                break
            if path not in inside and path.is_symlink():
                if not Path(os.path.realpath(path)).is_relative_to(home):
                    found.add(path)
                    break
            inside.add(path)
    return sorted(found)


def _head_problem(file: Path) -> str | None:
    """Say why the head of a file is no text; None: it is."""
    with open(file, "rb") as opened:
        head = opened.read(HEAD_BYTES)
        encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
        if encoding is not None:
            return f"is {encoding}; convert it to UTF-8, such as with iconv -f {encoding} -t UTF-8"
        if b"\0" in head:
            return "is not text; give files of UTF-8 text"
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD_BYTES)
        except UnicodeDecodeError as error:
            return (
                f"is not UTF-8 (byte {error.start}: 0x{head[error.start]:02x}); convert it, such as with "
                "iconv -f LATIN1 -t UTF-8"
            )
        if file.suffix != LINES_SUFFIX:
            return None
        opened.seek(0)
        number = 0
        while line := opened.readline(LONGEST_LINE_BYTES):
            number += 1
            if line := line.removeprefix(codecs.BOM_UTF8).strip():
                return _line_problem(line, number)
    return None


def _line_problem(line: bytes, number: int) -> str | None:
    """Say why a line is no document; None: it is, or it is too long to be looked at."""
    if len(line) >= LONGEST_LINE_BYTES - 1:
        return None
    try:
        found = parse_json(line)
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("text"), str):
        return None
    fields = f"; its fields: {', '.join(map(str, found))}" if isinstance(found, dict) and found else ""
    chats = isinstance(found, dict) and {"messages", "conversations"} & found.keys()
    how = "; chats are read with tokens=hf tokens.dataset=json" if chats else ""
    return f'line {number} is not an object with a "text" that is a string{fields[:200]}{how}'
