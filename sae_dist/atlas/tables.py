"""Parquet files of an atlas: written whole or not at all, the same bytes for the same rows."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sae_dist.core.files import replacing

DELTAS = ("at", "latent", "document", "position")
"""Columns whose neighbours differ by little."""


class TableWriter:
    """A table that is written piece by piece in a `with` block; groups of rows do not depend on the pieces.

    Args:
        row_group: rows in a group: a reader that wants few rows reads their groups alone.
    """

    def __init__(self, path: Path, schema: pa.Schema, row_group: int):
        self._path, self._schema, self._row_group = path, schema, row_group
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> "TableWriter":
        """Begin to write the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(self._path, synced=True))
            self._file = stack.enter_context(pq.ParquetWriter(temporary, self._schema, **_how(self._schema)))
            self._stack = stack.pop_all()
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows at the end of the table."""
        self._waiting.append(table)
        self._rows += len(table)
        if self._rows >= self._row_group:
            whole = pa.concat_tables(self._waiting)
            end = self._rows - self._rows % self._row_group
            self._file.write_table(whole.slice(0, end), row_group_size=self._row_group)
            self._waiting, self._rows = [whole.slice(end)], self._rows - end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the rest, and give the file its name; after an exception there is none."""
        if error is None and self._rows:
            self._file.write_table(pa.concat_tables(self._waiting), row_group_size=self._row_group)
        self._stack.__exit__(kind, error, trace)


def write_table(path: Path, table: pa.Table, row_group: int) -> None:
    """Write a table; see `TableWriter`."""
    with TableWriter(path, table.schema, row_group) as writer:
        writer.write(table)


def _how(schema: pa.Schema) -> dict[str, Any]:
    flat = [field for field in schema if not pa.types.is_nested(field.type)]
    encodings = {field.name: _encoding(field) for field in flat}
    return {
        "compression": "zstd",
        "use_dictionary": False,
        "column_encoding": encodings,
        "write_page_checksum": True,
    }


def _encoding(field: pa.Field) -> str:
    if pa.types.is_floating(field.type):
        return "BYTE_STREAM_SPLIT"
    return "DELTA_BINARY_PACKED" if field.name in DELTAS else "PLAIN"
