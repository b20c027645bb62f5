"""Parquet files of an atlas: written whole or not at all, the same bytes for the same rows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sae_dist.atlas.schema import ROW_GROUP
from sae_dist.core.files import replacing

DELTAS = ("at", "latent", "document", "position")
"""Columns whose neighbours differ by little."""


def write_table(path: Path, table: pa.Table, row_group: int = ROW_GROUP) -> None:
    """Write a table; a reader that wants few rows reads their groups alone.

    Args:
        row_group: rows in a group.
    """
    flat = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    encodings = {name: _encoding(name, table.schema.field(name).type) for name in flat}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, synced=True) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=row_group,
            compression="zstd",
            use_dictionary=False,
            column_encoding=encodings,
            store_schema=True,
        )


def _encoding(name: str, kind: pa.DataType) -> str:
    if pa.types.is_floating(kind):
        return "BYTE_STREAM_SPLIT"
    return "DELTA_BINARY_PACKED" if name in DELTAS else "PLAIN"
