"""What an atlas costs at a width and length that no run here has: simulated codes, the real tables.

    python tools/atlas_scale.py FOLDER [--latents 1048576] [--tokens 10000000] [--k 32] [--dense 8]

Codes are drawn: rates of latents fall as a power of their number, but for a few dense ones that fire at
half of all tokens; codes are log-normal, tokens follow Zipf's law. Then windows, postings and descriptions
are made by the functions of `sae-dist atlas`, in one process. Prints processor seconds, seconds of the clock,
bytes, and the peak of allocated memory of each stage (numpy's; Arrow's of all stages so far); the codes that
a window is made of count, drawing them does not. FOLDER is kept.
"""

import argparse
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from sae_dist.atlas.describe.lists import Extra
from sae_dist.atlas.describe.part import describe_part
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.describe.text import Text
from sae_dist.atlas.memory import budget, codes_at_once, window_rows
from sae_dist.atlas.postings import merge_part
from sae_dist.atlas.schema import (
    DOCUMENTS,
    DOCUMENTS_SCHEMA,
    KEPT,
    LEFT_OUT,
    ROW_GROUPS,
    TOKENS,
    TOKENS_SCHEMA,
    part_latents,
    parts,
)
from sae_dist.atlas.tables import write_table
from sae_dist.atlas.windows import WindowCodes, window_files

DOCUMENT, CONTEXT, VOCABULARY = 1000, 256, 50_000


@contextmanager
def stage(name: str, count: int, what: str) -> Iterator[None]:
    clock, processor = time.perf_counter(), time.process_time()
    tracemalloc.reset_peak()
    yield
    processor = time.process_time() - processor
    peak, arrow = tracemalloc.get_traced_memory()[1] / 2**20, pa.default_memory_pool().max_memory() / 2**20
    print(
        f"{name:<12}{processor:8.0f} s of processor, {time.perf_counter() - clock:8.0f} s, "
        f"{1e6 * processor / count:.3f} us a {what}, peak {peak:.0f} + {arrow:.0f} MiB",
        flush=True,
    )


def text(folder: Path, tokens: int) -> np.ndarray:
    """Write a text of so many kept tokens, one special token before each context; the place of each row."""
    rng = np.random.default_rng(0)
    places = tokens + -(-tokens // (CONTEXT - 1))
    at = np.arange(places)
    state = np.where(at % CONTEXT == 0, LEFT_OUT, KEPT).astype(np.uint8)
    token = np.minimum(rng.zipf(1.2, places), VOCABULARY - 1)
    columns = [at, token, at // DOCUMENT, at % CONTEXT, state]
    arrays = [pa.array(each, field.type) for each, field in zip(columns, TOKENS_SCHEMA, strict=True)]
    write_table(folder / TOKENS, pa.table(arrays, schema=TOKENS_SCHEMA), ROW_GROUPS["tokens"])
    begin = np.arange(0, places, DOCUMENT)
    length = np.diff(begin, append=places)
    kept = np.add.reduceat(state == KEPT, begin, dtype=np.int64)
    rows = [np.arange(len(begin)), np.zeros(len(begin)), np.arange(len(begin)), begin, length, kept]
    arrays = [pa.array(each).cast(field.type) for each, field in zip(rows, DOCUMENTS_SCHEMA, strict=True)]
    write_table(folder / DOCUMENTS, pa.table(arrays, schema=DOCUMENTS_SCHEMA), ROW_GROUPS["documents"])
    return at[state == KEPT].astype(np.uint32)


def drawn(
    rng: np.random.Generator, first: int, rows: int, latents: int, k: int, dense: int
) -> tuple[np.ndarray, ...]:
    """Row, latent and code of k codes a row, a few less where a latent is drawn twice."""
    latent = (latents * rng.random((rows, k)) ** 2).astype(np.int64)
    latent[:, :dense] = np.where(rng.random((rows, dense)) < 0.5, np.arange(dense), latent[:, :dense])
    key = np.unique((np.arange(first, first + rows)[:, None] * latents + latent).ravel())
    code = np.exp(rng.normal(size=len(key)).astype(np.float32))
    return key // latents, key % latents, code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latents", type=int, default=1 << 20)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--dense", type=int, default=8)
    asked = parser.parse_args()
    settings = Settings()
    at_once, rows_at_once = (
        codes_at_once(asked.latents, settings),
        window_rows(asked.latents, asked.k, settings),
    )
    print(f"{budget(asked.latents, settings) / 2**20:.0f} MiB for codes: {at_once:,} are described at once")
    asked.folder.mkdir(parents=True)
    tracemalloc.start()
    rng, codes = np.random.default_rng(1), asked.tokens * asked.k
    with stage("text", asked.tokens, "token"):
        at_of_row = text(asked.folder, asked.tokens)
    firsts = range(0, asked.tokens, rows_at_once)
    drawing, most = 0.0, 0
    with stage("windows", codes, "code"):
        for window, first in enumerate(firsts):
            began = time.process_time()
            rows = min(rows_at_once, asked.tokens - first)
            found = drawn(rng, first, rows, asked.latents, asked.k, asked.dense)
            drawing += time.process_time() - began
            held = WindowCodes()
            held.add_arrays(*found)
            del found
            tracemalloc.reset_peak()
            held.write(asked.folder, window, 0)
            most = max(most, tracemalloc.get_traced_memory()[1])
    print(f"{'':<12}{drawing:8.0f} s of these to draw the codes; peak without them {most / 2**20:.0f} MiB")
    files = [path for each in window_files(asked.folder, len(firsts)) for path in each]
    each, count = part_latents(asked.latents), 0
    with stage("postings", codes, "code"):
        for part in range(parts(asked.latents)):
            mine = range(part * each, min((part + 1) * each, asked.latents))
            count += merge_part(asked.folder, part, mine, files, at_of_row, at_once)
    size = sum(path.stat().st_size for path in asked.folder.glob("postings/*.parquet"))
    print(f"{count:,} codes in {size / 2**30:.2f} GiB, {size / count:.2f} bytes each")
    with stage("describe", codes, "code"):
        known = Text.open(asked.folder)
        for part in range(parts(asked.latents)):
            describe_part(asked.folder, part, asked.latents, settings, Extra(), known, at_once=at_once)
    for name in ("latents", "examples"):
        size = sum(path.stat().st_size for path in asked.folder.glob(f"{name}/*.parquet"))
        print(f"{name}: {size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
