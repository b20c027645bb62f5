"""Labels of latents: words and a judgement, by a person or imported, in SQLite beside an atlas.

Nothing is written over: a new label is a row of its own, and the newest of a latent counts. Words are found
by SQLite's full-text search.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import RLock
from time import monotonic
from urllib.parse import quote

from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import parse_json, read_bounded, reading
from sae_dist.core.text import CONTROL, first_line

REVIEWS = "reviews.sqlite"
STATES = ("proposed", "confirmed", "rejected", "unclear")
LONGEST = 2000
"""Characters of a label, at most."""
AT_ONCE = 500
"""Latents asked for in one query."""
BUSY_S = 10.0
"""Seconds after which a file that is written, or does not answer, is given up."""
STEPS = 100_000
TABLES = """
CREATE TABLE IF NOT EXISTS labels (
    id INTEGER PRIMARY KEY, latent INTEGER NOT NULL, text TEXT NOT NULL, state TEXT NOT NULL,
    author TEXT NOT NULL, date TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS labels_of_latent ON labels (latent, id);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (text, tokenize = 'unicode61 remove_diacritics 2');
"""
"""The rows of `words` have the number of their latent, and the text of its newest label."""
COLUMNS = "latent, text, state, author, date"
NEWEST = "id IN (SELECT max(id) FROM labels GROUP BY latent)"


@dataclass(frozen=True)
class Label:
    """The words that somebody gave a latent.

    Attributes:
        state: one of STATES.
        author: who gave them, or where they come from.
        date: in UTC, as ISO 8601 has it.
    """

    latent: int
    text: str
    state: str
    author: str
    date: str


class Labels:
    """The labels of an atlas. Threads may share it, and processes may write at once.

    Args:
        path: the file, `RUN/atlas/reviews.sqlite`; it is made with the first label.
        num_latents: labels of other latents are refused.
    """

    def __init__(self, path: Path, num_latents: int):
        self.path, self.num_latents, self._lock = path, num_latents, RLock()

    def set(self, latent: int, text: str, state: str = STATES[0], author: str = "") -> Label:
        """Give a latent a label, and return it.

        Raises:
            ConfigError: there is no such latent or state, the text is too long or has control characters, or
                the file cannot be written.
        """
        return self.add([(latent, text)], state, author)[0]

    def add(self, given: Iterable[tuple[int, str]], state: str, author: str) -> list[Label]:
        """Give latents labels, all or none of them; see `set`."""
        if state not in STATES:
            raise ConfigError(f"state={state[:40]} is unknown; the states are {', '.join(STATES)}")
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        author = self._checked("author", author)
        found = [
            Label(self._latent(latent), self._checked("label", text), state, author, date)
            for latent, text in given
        ]
        with self._open(write=True) as file:
            file.execute("BEGIN IMMEDIATE")
            rows = [(each.latent, each.text, each.state, each.author, each.date) for each in found]
            insert = "INSERT INTO labels (latent, text, state, author, date) VALUES (?, ?, ?, ?, ?)"
            file.executemany(insert, rows)
            file.executemany("DELETE FROM words WHERE rowid = ?", [(each.latent,) for each in found])
            newest = {each.latent: each.text for each in found}
            file.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", newest.items())
            file.execute("COMMIT")
        return found

    def of(self, latents: Iterable[int]) -> dict[int, Label]:
        """Return the newest label of each latent that has one.

        Raises:
            ConfigError: the file is damaged.
        """
        wanted, found = sorted(set(latents)), {}
        with self._open() as file:
            for first in range(0, len(wanted), AT_ONCE):
                some = wanted[first : first + AT_ONCE]
                marks = ", ".join("?" * len(some))
                query = f"SELECT latent, max(id) FROM labels WHERE latent IN ({marks}) GROUP BY latent"
                for latent, number in file.execute(query, some).fetchall():
                    row = file.execute(f"SELECT {COLUMNS} FROM labels WHERE id = ?", (number,)).fetchone()
                    found[latent] = self._label(row)
        return found

    def history(self, latent: int) -> list[Label]:
        """Return all labels that a latent ever had, newest first.

        Raises:
            ConfigError: the file is damaged.
        """
        query = f"SELECT {COLUMNS} FROM labels WHERE latent = ? ORDER BY id DESC LIMIT 1000"
        with self._open() as file:
            return [self._label(row) for row in file.execute(query, (latent,))]

    def search(self, words: str, top: int = 20) -> list[tuple[Label, float]]:
        """Return labels that have all of some words, or words that begin so, best first, with their scores.

        Raises:
            ConfigError: there is no word, or the file is damaged.
        """
        terms = re.findall(r"\w+", words)
        if not terms:
            raise ConfigError(f"{words[:40]!r} has no word to look for in labels")
        match = " AND ".join(f'"{each}"*' for each in terms[:32])
        query = f"""SELECT {COLUMNS}, score FROM labels JOIN
            (SELECT rowid AS found, bm25(words) AS score FROM words WHERE words MATCH ?) ON latent = found
            WHERE {NEWEST} ORDER BY score, latent LIMIT ?"""
        with self._open() as file:
            return [(self._label(row[:5]), -float(row[5])) for row in file.execute(query, (match, top))]

    def all(self, state: str | None = None) -> list[Label]:
        """Return the newest label of every latent that has one; of one state only, if it is given.

        Raises:
            ConfigError: the file is damaged.
        """
        query = f"SELECT {COLUMNS} FROM labels WHERE {NEWEST} AND ? IN (state, '') ORDER BY latent"
        with self._open() as file:
            return [self._label(row) for row in file.execute(query, (state or "",))]

    def read(self, path: Path, state: str = STATES[0], author: str | None = None) -> int:
        """Add the labels of a JSON file, an object of words by latent; return how many they are.

        Args:
            author: None: the name of the file.

        Raises:
            ConfigError: it is no such file, or a label of it is refused.
        """
        with reading(path, 'is no file of labels, such as {"123": "dates"} ({reason})'):
            found = parse_json(read_bounded(path), unique=True)
            if not isinstance(found, Mapping):
                raise ValueError("it holds no keys")
            given = [(int(latent), str(text)) for latent, text in found.items()]
        self.add(given, state, path.name if author is None else author)
        return len(given)

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Open the file for the body; to read what does not exist is to read nothing.

        Raises:
            ConfigError: it is damaged, or cannot be written.
        """
        there = self.path.is_file()
        where = ":memory:" if not there and not write else f"file:{_quoted(self.path)}?mode=rw{'c' * write}"
        with self._lock:
            try:
                file = sqlite3.connect(where, timeout=BUSY_S, isolation_level=None, uri=True)
                try:
                    # What a file from elsewhere defines, such as views, may call nothing.
                    file.execute("PRAGMA trusted_schema = OFF")
                    file.text_factory = lambda content: content.decode("utf-8", "replace")
                    end = monotonic() + BUSY_S
                    file.set_progress_handler(lambda: monotonic() > end, STEPS)
                    if write or not there:
                        file.executescript(TABLES)
                    else:
                        file.execute("PRAGMA query_only = ON")
                    yield file
                finally:
                    file.close()
            except (sqlite3.Error, UnicodeError) as error:
                raise ConfigError(f"{self.path} cannot be used: {first_line(error)}") from None

    def _latent(self, latent: int) -> int:
        if isinstance(latent, bool) or not 0 <= latent < self.num_latents:
            raise ConfigError(
                f"latent {str(latent)[:20]} does not exist; the latents are 0 to {self.num_latents - 1}"
            )
        return int(latent)

    def _label(self, row: tuple[object, ...] | None) -> Label:
        latent, *words = row or (None,)
        if not isinstance(latent, int) or not all(isinstance(each, str) for each in words):
            raise ConfigError(f"{self.path} cannot be used: a row of it is no label")
        return Label(latent, *(str(each)[:LONGEST] for each in words))

    @staticmethod
    def _checked(what: str, text: str) -> str:
        if len(text) > LONGEST:
            raise ConfigError(f"{what} has {len(text):,} characters; give at most {LONGEST:,}")
        if found := CONTROL.search(text.replace("\n", " ")):
            raise ConfigError(f"{what} has the control character {ascii(found[0])}; write it without")
        return text.strip()


def _quoted(path: Path) -> str:
    return quote(str(path.absolute()))
