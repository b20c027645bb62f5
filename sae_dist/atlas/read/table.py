"""Parquet files of an atlas, read a few groups of rows at a time; a faulty file becomes a line of error."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae_dist.atlas.manifest import footer_sum
from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import reading

MOST_GROUPS, MOST_ROWS = 1 << 20, 1 << 23
"""Groups of a file, and rows of a group, that are read at all."""
MOST_GROUP_BYTES = 1 << 29
FOOTER_STRINGS, FOOTER_ITEMS = 1 << 28, 1 << 24
"""Bounds of what a footer may ask for."""


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with a Parquet file in the body into one line.

    Raises:
        ConfigError: something is.
    """
    with reading(path, "cannot be read ({reason}); make the atlas again"):
        try:
            yield
        except pa.ArrowException as error:
            raise ValueError(str(error)) from None


class TableFile:
    """A Parquet file with a known schema. It may be read by several threads.

    Args:
        footer: sha256 of its footer, by the manifest; None: it is not compared. Pages have their own sums.

    Raises:
        ConfigError: it is missing, damaged, of another schema, or asks for too much memory.
    """

    def __init__(self, path: Path, schema: pa.Schema, footer: str | None = None):
        self.path, self._lock = path, RLock()
        self._ends: dict[tuple[int, str], tuple[int, int]] = {}
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; make the atlas again")
        with sound(path):
            if footer is not None and footer_sum(path) != footer:
                raise ValueError("it is not what was written")
            self.file = pq.ParquetFile(
                path,
                thrift_string_size_limit=FOOTER_STRINGS,
                thrift_container_size_limit=FOOTER_ITEMS,
                page_checksum_verification=True,
            )
            found = self.file.schema_arrow
        if found.names != schema.names or found.types != schema.types:
            raise ConfigError(f"{path} has other columns than an atlas has; make the atlas again")
        with sound(path):
            self.first_G = self._check_sizes()

    def _check_sizes(self) -> np.ndarray:
        """Return the first row of each group, and after them the number of rows."""
        metadata = self.file.metadata
        if metadata.num_row_groups > MOST_GROUPS:
            raise ValueError(f"it has {metadata.num_row_groups:,} groups of rows")
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        if sizes and not 0 <= min(sizes) <= max(sizes) <= MOST_ROWS:
            raise ValueError(f"a group of it would have {max(sizes):,} rows")
        if sum(sizes) != metadata.num_rows:
            raise ValueError("its groups do not have all its rows")
        return np.cumsum([0, *sizes], dtype=np.int64)

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return int(self.first_G[-1])

    def ends(self, group: int, column: str) -> tuple[int, int]:
        """Return a column of numbers in the first and the last row of a group, which has rows.

        They are read, not taken from the footer's statistics: a damaged footer ends pyarrow, not the reading.

        Raises:
            ConfigError: the file is damaged.
        """
        if (group, column) not in self._ends:
            values = numbers(self.read([group], [column]), column)
            self._ends[group, column] = (int(values[0]), int(values[-1])) if len(values) else (0, 0)
        return self._ends[group, column]

    def groups_with(self, column: str, low: int, high: int) -> np.ndarray:
        """Return the groups that may hold rows whose `column`, which ascends, is from `low` to `high`.

        Raises:
            ConfigError: the file is damaged.
        """
        groups = range(len(self.first_G) - 1)
        first = bisect_left(groups, low, key=lambda group: self.ends(group, column)[1])
        end = bisect_right(groups, high, key=lambda group: self.ends(group, column)[0])
        return np.arange(first, max(end, first))

    def read(self, groups: Sequence[int] | np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return some columns of some groups, in the order of the file.

        Raises:
            ConfigError: the file is damaged.
        """
        with self._lock, sound(self.path):
            for number in groups:
                size = self.file.metadata.row_group(int(number)).total_byte_size
                if not 0 <= size <= MOST_GROUP_BYTES:
                    raise ValueError(f"a group of it would have {size:,} bytes")
            if not len(groups):
                return self.file.schema_arrow.empty_table().select(list(columns))
            table = self.file.read_row_groups([int(each) for each in groups], columns=list(columns))
            table.validate()
            wanted = int(sum(self.first_G[number + 1] - self.first_G[number] for number in groups))
            if len(table) != wanted:
                raise ValueError(f"it has {len(table):,} rows where {wanted:,} should be")
            return table

    def batches(self, columns: Sequence[str], at_once: int = 1 << 20) -> Iterator[pa.Table]:
        """Yield some columns of the whole file, about so many rows at a time."""
        groups: list[int] = []
        for number in range(len(self.first_G) - 1):
            groups.append(number)
            if self.first_G[number + 1] - self.first_G[groups[0]] >= at_once:
                yield self.read(groups, columns)
                groups = []
        if groups:
            yield self.read(groups, columns)


def numbers(table: pa.Table, column: str) -> np.ndarray:
    """Return a column of numbers as an array; one that is null becomes 0."""
    found = table.column(column)
    if found.null_count:
        found = found.fill_null(0)
    return found.to_numpy()
