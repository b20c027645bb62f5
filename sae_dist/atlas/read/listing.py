"""Latents in an order, a page at a time: filtered and sorted by a narrow index, and read from their files.

The index has the numbers that latents are sorted by, 28 bytes of each. A page begins behind a key, the value
of the last latent on the page before and its number, so that the thousandth page costs what the first does.
Letters: P tokens in a column; f latents of a file; N latents found.
"""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from threading import RLock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.table import TableFile, numbers
from sae_dist.atlas.schema import LATENTS, part_latents, parts
from sae_dist.core.errors import ConfigError

ORDERS = {
    "often": ("rate", True),
    "rare": ("rate", False),
    "strong": ("most", True),
    "documents": ("documents", True),
    "number": ("latent", False),
}
"""Column and whether the greatest come first, by the order's name."""
LISTS = ("up", "down", "lens_up", "lens_down", "tokens", "next")
"""Columns that name tokens."""
INDEX = ("latent", "count", "documents", "rate", "most")
SHOWN = ("tokens", "up")
THREADS = 2
KEPT = 64
"""Sets of latents, and counts, that are kept for the next page."""
STEP = 4
"""Bars of the histogram of rates in a power of ten."""

Key = tuple[float, int]


@dataclass(frozen=True)
class Filter:
    """The latents that are listed.

    Attributes:
        low, high: bounds of the rate, both included.
        silent: those that never fire, too.
        token: only those that name this token ...
        where: ... in this column of `LISTS`.
        among: only these latents; without: none of these.
    """

    low: float | None = None
    high: float | None = None
    silent: bool = False
    token: int | None = None
    where: str = "up"
    among: frozenset[int] | None = None
    without: frozenset[int] | None = None


@dataclass(frozen=True)
class Page:
    """A page of latents: rows in the order of the list, and the keys where its neighbours begin.

    Attributes:
        rows: as `Listing.rows` returns them.
        after, before: keys for the next page and the one before; None: there is none.
    """

    rows: list[dict[str, Any]]
    after: Key | None
    before: Key | None


class Listing:
    """The latents of an atlas as a list; several threads may use it."""

    def __init__(self, atlas: Atlas):
        self.atlas = atlas
        self._lock = RLock()
        self._counts: dict[Filter, int] = {}
        self._with_token: dict[tuple[str, int], frozenset[int]] = {}

    def page(
        self,
        which: Filter,
        order: str = "often",
        after: Key | None = None,
        before: Key | None = None,
        size: int = 50,
    ) -> Page:
        """Return the latents behind one key, or those before another.

        Raises:
            ConfigError: the files are damaged.
        """
        column, falling = ORDERS[order]
        backwards = after is None and before is not None
        key = before if backwards else after
        clauses, values = self._clauses(which)
        down = falling != backwards
        if key is not None:
            beyond, over = ("<" if down else ">"), ("<" if backwards else ">")
            if column == "latent":
                clauses, values = [*clauses, f"latent {over} ?"], [*values, key[1]]
            else:
                clauses.append(f"({column} {beyond} ? or ({column} = ? and latent {over} ?))")
                values += [key[0], key[0], key[1]]
        turn = "desc" if backwards else "asc"
        by = (
            f"latent {turn}" if column == "latent" else f"{column} {'desc' if down else 'asc'}, latent {turn}"
        )
        query = f"select latent from latents {_where(clauses)} order by {by} limit {size + 1}"
        found = self._rows(query, values)
        more, latents = len(found) > size, [row[0] for row in found[:size]]
        if backwards:
            latents.reverse()
        rows = self.rows(latents)
        keys = [(float(row[column]), int(row["latent"])) for row in (*rows[:1], *rows[-1:])]
        return Page(
            rows,
            keys[-1] if keys and (more or backwards) else None,
            keys[0] if keys and (more if backwards else after is not None) else None,
        )

    def rows(self, latents: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of some latents, in the order given: `INDEX`, and ids of tokens of `SHOWN`.

        Raises:
            ConfigError: the files are damaged.
        """
        query = f"select {', '.join(INDEX)} from latents where latent in (select unnest(?::uinteger[]))"
        numbers_of = {row[0]: dict(zip(INDEX, row, strict=True)) for row in self._rows(query, [latents])}
        if lost := [each for each in latents if each not in numbers_of]:
            raise ConfigError(f"{self.atlas.folder} says nothing of latent {lost[0]}; make the atlas again")
        return [numbers_of[each] | self._shown(each) for each in latents]

    def _shown(self, latent: int) -> dict[str, list[int]]:
        """Return the ids in the lists of a latent that are shown; of these columns, tokens alone are read."""
        file = self.atlas.table(LATENTS, latent // part_latents(self.atlas.num_latents))
        leaves = [_leaf(name) for name in SHOWN]
        table = file.read(file.groups_with("latent", latent, latent), ["latent", *leaves])
        own_N = np.flatnonzero(numbers(table, "latent") == latent)
        rows = table.slice(int(own_N[0]), 1).to_pylist() if len(own_N) else [{}]
        return {name: [each["token"] for each in rows[0].get(name) or ()] for name in SHOWN}

    def count(self, which: Filter) -> int:
        """Return how many latents a list has.

        Raises:
            ConfigError: the files are damaged.
        """
        plain = replace(which, among=None, without=None)
        if which != plain or which not in self._counts:
            clauses, values = self._clauses(which)
            ((number,),) = self._rows(f"select count(*) from latents {_where(clauses)}", values)
            if which != plain:
                return int(number)
            _keep(self._counts, which, int(number))
        return self._counts[which]

    def living(self, latent: int, step: int) -> int | None:
        """Return the nearest latent on one side that fires at all; None: there is none.

        Args:
            step: 1 for higher numbers, -1 for lower ones.

        Raises:
            ConfigError: the files are damaged.
        """
        best, side = ("min", ">") if step > 0 else ("max", "<")
        query = f"select {best}(latent) from latents where latent {side} ? and count > 0"
        ((found,),) = self._rows(query, [latent])
        return None if found is None else int(found)

    @cached_property
    def rates(self) -> list[tuple[float, int]]:
        """The histogram of rates: where each bar begins, as a power of ten, and how many latents it has."""
        bar = f"cast(floor(log10(rate) * {STEP}) as integer)"
        query = f"select {bar} as bar, count(*) from latents where rate > 0 group by bar order by bar"
        return [(bar / STEP, number) for bar, number in self._rows(query)]

    def _clauses(self, which: Filter) -> tuple[list[str], list[Any]]:
        clauses, values = [], list[Any]()
        for bound, sign in ((which.low, ">="), (which.high, "<=")):
            if bound is not None:
                clauses.append(f"rate {sign} ?")
                values.append(bound)
        if not which.silent:
            clauses.append("count > 0")
        among = which.among
        if which.token is not None:
            named = self._naming(which.where, which.token)
            among = named if among is None else among & named
        for some, word in ((among, "in"), (which.without, "not in")):
            if some is not None:
                clauses.append(f"latent {word} (select unnest(?::uinteger[]))")
                values.append(sorted(some))
        return clauses, values

    def _naming(self, where: str, token: int) -> frozenset[int]:
        """Return the latents that name a token in a column."""
        if where not in LISTS:
            raise ConfigError(f"{where} names no tokens; choose {', '.join(LISTS)}")
        if (where, token) not in self._with_token:
            files = [self.atlas.table(LATENTS, part) for part in range(parts(self.atlas.num_latents))]
            with ThreadPoolExecutor(THREADS) as pool:
                found = pool.map(lambda file: _naming(file, where, token), files)
                _keep(self._with_token, (where, token), frozenset().union(*found))
        return self._with_token[where, token]

    @cached_property
    def _connection(self) -> Any:
        """The index, in memory."""
        import duckdb

        made = duckdb.connect(":memory:", config={"threads": THREADS})
        for part in range(parts(self.atlas.num_latents)):
            piece = pa.concat_tables(self.atlas.table(LATENTS, part).batches(INDEX))
            made.register("piece", piece)
            # What a latent that never fires has no value of counts as 0.
            values = "select latent, " + ", ".join(f"coalesce({name}, 0) as {name}" for name in INDEX[1:])
            made.execute(
                f"{'insert into latents' if part else 'create table latents as'} {values} from piece"
            )
            made.unregister("piece")
        return made

    def _rows(self, query: str, values: Collection[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            cursor = self._connection.cursor()
        return list(cursor.execute(query, list(values)).fetchall())


def _naming(file: TableFile, where: str, token: int) -> list[int]:
    """Return the latents of a file that name a token in a column; of the column, tokens alone are read."""
    found: list[int] = []
    for table in file.batches(["latent", _leaf(where)]):
        lists = table.column(where).combine_chunks()
        token_P = pc.struct_field(lists.flatten(), "token").to_numpy(zero_copy_only=False)
        end_f = np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False))
        rows = np.unique(np.searchsorted(end_f, np.flatnonzero(token_P == token), "right"))
        found += numbers(table, "latent")[rows].tolist()
    return found


def _leaf(column: str) -> str:
    return f"{column}.list.element.token"


def _where(clauses: Sequence[str]) -> str:
    return f"where {' and '.join(clauses)}" if clauses else ""


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep a value, and forget the oldest of too many."""
    kept[key] = value
    while len(kept) > KEPT:
        kept.pop(next(iter(kept)), None)
