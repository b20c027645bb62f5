"""Questions to an atlas in SQL, answered by DuckDB from the Parquet files, without a server.

A query can read these files and nothing else: no other file, no network, no extension, no variable of the
program; and it writes nothing.
"""

from pathlib import Path
from threading import Timer
from typing import Any

import pyarrow as pa

from sae_dist.atlas.schema import DOCUMENTS, EXAMPLES, LATENTS, POSTINGS, TOKENS, part_file, parts
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line

ROWS = 1 << 20
"""Rows of an answer, unless told otherwise."""
MEMORY, THREADS = "2GiB", 2
BATCH = 1 << 16
PARTED = (POSTINGS, LATENTS, EXAMPLES)


def answer(
    folder: Path,
    num_latents: int,
    query: str,
    *,
    rows: int = ROWS,
    seconds: float | None = None,
    memory: str = MEMORY,
    threads: int = THREADS,
) -> pa.Table:
    """Return the answer to a query over the views tokens, documents, postings, latents and examples.

    Args:
        folder: of the atlas.
        query: a single SELECT.
        rows: the most that the answer may have.
        seconds: after which it is given up; None: never.
        memory: the most that the query may take, as DuckDB reads it.

    Raises:
        ConfigError: it is no single SELECT, is wrong, took too long or too much memory, or has more rows.
    """
    import duckdb

    connection = _connected(folder, num_latents, memory, threads)
    try:
        _check_select(connection, query)
        timer = Timer(seconds, connection.interrupt) if seconds is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            return _fetched(connection.sql(query), rows)
        finally:
            if timer is not None:
                timer.cancel()
    except duckdb.InterruptException:
        raise ConfigError(f"the query took longer than {seconds:g} s; ask for less") from None
    except duckdb.OutOfMemoryException:
        raise ConfigError(
            f"the query takes more than {memory}; ask for less, or allow more: memory="
        ) from None
    except (duckdb.Error, pa.ArrowException, RuntimeError, UnicodeError) as error:
        raise ConfigError(f"the query failed: {first_line(error)}") from None
    finally:
        connection.close()


def _connected(folder: Path, num_latents: int, memory: str, threads: int) -> Any:
    """Return a connection that knows the views, locked so that no query can change what it may reach."""
    import duckdb

    each = range(parts(num_latents))
    files = {name: [part_file(folder, name, part) for part in each] for name in PARTED}
    files |= {"tokens": [folder / TOKENS], "documents": [folder / DOCUMENTS]}
    there = {name: [str(path.absolute()) for path in own if path.is_file()] for name, own in files.items()}
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": memory,
            "threads": str(threads),
            "temp_directory": "",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
        },
    )
    try:
        allowed = [path for paths in there.values() for path in paths]
        connection.execute(f"SET allowed_paths = {_listed(allowed)}")
        for name, paths in there.items():
            if paths:
                connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_listed(paths)})")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    except duckdb.Error as error:
        connection.close()
        raise ConfigError(f"{folder} cannot be read ({first_line(error)}); make the atlas again") from None
    return connection


def _listed(words: list[str]) -> str:
    quoted = (f"'{word.replace(chr(39), 2 * chr(39))}'" for word in words)
    return f"[{', '.join(quoted)}]"


def _check_select(connection: Any, query: str) -> None:
    """Check that a query is one statement that reads.

    Raises:
        ConfigError: it is not.
    """
    import duckdb

    try:
        found = connection.extract_statements(query)
    except duckdb.Error as error:
        raise ConfigError(f"the query failed: {first_line(error)}") from None
    kinds = [each.type for each in found]
    if kinds != [duckdb.StatementType.SELECT]:
        said = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
        raise ConfigError(f"an atlas answers one SELECT at a time, and this is {said}")


def _fetched(result: Any, most: int) -> pa.Table:
    """Return all rows of a result.

    Raises:
        ConfigError: there are more than `most`.
    """
    # Renamed in DuckDB 1.4, and gone under the old name in 2.
    read = getattr(result, "to_arrow_reader", None) or result.fetch_arrow_reader
    reader = read(BATCH)
    batches, count = [], 0
    for batch in reader:
        batches.append(batch)
        count += len(batch)
        if count > most:
            raise ConfigError(f"the answer has more than {most:,} rows; add LIMIT, or allow more: rows=")
    return pa.Table.from_batches(batches, schema=reader.schema)
