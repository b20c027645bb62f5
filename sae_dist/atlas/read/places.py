"""The tokens of an atlas by their places, from the groups of rows that hold them.

Letters: T tokens in the order of places, N places asked for.
"""

from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock

import numpy as np

from sae_dist.atlas.read.table import TableFile, numbers
from sae_dist.core.errors import ConfigError

COLUMNS = ("token", "document", "position", "state")
KEPT_ROWS = 1 << 22
"""Rows that are kept for the next time, 13 bytes each."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of the text, the first at place `first`."""

    first: int
    token_T: np.ndarray
    document_T: np.ndarray
    position_T: np.ndarray
    state_T: np.ndarray

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.token_T)

    def part(self, first: int, end: int) -> "Stretch":
        """Return the tokens of places from `first` to before `end`."""
        inside = slice(first - self.first, end - self.first)
        return Stretch(
            first, *(each[inside] for each in (self.token_T, self.document_T, self.position_T, self.state_T))
        )


class Places:
    """The text of an atlas, of which groups that were read lately are kept in memory."""

    def __init__(self, table: TableFile):
        self.table, self._lock = table, RLock()
        self._kept: OrderedDict[int, Stretch] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of places."""
        return self.table.num_rows

    def stretch(self, first: int, end: int) -> Stretch:
        """Return the tokens from `first` to before `end`.

        Raises:
            ConfigError: there is no such place, or the file is damaged.
        """
        if not 0 <= first < end <= len(self):
            raise ConfigError(f"place {first} to {end - 1} does not exist; places are 0 to {len(self) - 1}")
        one, last = (int(np.searchsorted(self.table.first_G, at, "right")) - 1 for at in (first, end - 1))
        parts = [self._group(number) for number in range(one, last + 1)]
        whole = parts[0]
        if len(parts) > 1:
            columns = ("token_T", "document_T", "position_T", "state_T")
            joined = (np.concatenate([getattr(each, name) for each in parts]) for name in columns)
            whole = Stretch(parts[0].first, *joined)
        return whole.part(first, end)

    def around(self, at: int, left: int, right: int) -> Stretch:
        """Return the tokens around a place that are of its segment, at most so many before and after it."""
        found = self.stretch(max(0, at - left), min(len(self), at + right + 1))
        place = at - found.first
        begin = max(0, place - int(found.position_T[place]))
        following = np.flatnonzero(found.position_T[place + 1 :] == 0)
        end = place + 1 + int(following[0]) if len(following) else len(found)
        return found.part(found.first + begin, found.first + end)

    def _group(self, number: int) -> Stretch:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        table = self.table.read([number], ["at", *COLUMNS])
        first, end = self.table.first_G[number : number + 2].tolist()
        if not np.array_equal(numbers(table, "at"), np.arange(first, end)):
            raise ConfigError(f"{self.table.path} does not hold every place in order; make the atlas again")
        found = Stretch(first, *(numbers(table, name) for name in COLUMNS))
        with self._lock:
            self._kept[number] = found
            while len(self._kept) > 1 and sum(map(len, self._kept.values())) > KEPT_ROWS:
                self._kept.popitem(last=False)
        return found
