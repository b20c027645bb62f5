"""Everything that an atlas says of the latents of a part, from their postings and the text.

Letters: f latents of a part; g those that fire; S examples; J numbers of a list.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from sae_dist.atlas.describe.about import About, Examples
from sae_dist.atlas.describe.blocks import AT_ONCE, blocks
from sae_dist.atlas.describe.codes import Codes
from sae_dist.atlas.describe.lists import Extra, numbers, structs
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.describe.split import about_split
from sae_dist.atlas.describe.text import Text
from sae_dist.atlas.schema import (
    EXAMPLES,
    EXAMPLES_SCHEMA,
    LATENTS,
    LATENTS_SCHEMA,
    QUANTILES,
    ROW_GROUPS,
    part_file,
    part_latents,
)
from sae_dist.atlas.tables import TableWriter


def describe_part(
    folder: Path,
    part: int,
    num_latents: int,
    settings: Settings,
    extra: Extra,
    text: Text | None = None,
    *,
    at_once: int = AT_ONCE,
) -> None:
    """Write latents/ and examples/ of a part, from its postings and the text.

    Every latent has a row, a silent one too: its least and greatest code are null, its lists empty or zeros.
    What `extra` lacks is null.

    Args:
        folder: of the atlas.
        text: of the atlas, if it is open already.
        at_once: codes in memory, at most; the files do not depend on it.
    """
    text = text or Text.open(folder)
    each = part_latents(num_latents)
    latents = range(part * each, min((part + 1) * each, num_latents))
    writers = [
        TableWriter(part_file(folder, name, part), schema, ROW_GROUPS[name])
        for name, schema in ((LATENTS, LATENTS_SCHEMA), (EXAMPLES, EXAMPLES_SCHEMA))
    ]
    with writers[0], writers[1]:
        for block in blocks(folder, part, latents, at_once):
            some = block.latents
            if block.is_split:
                about = about_split(block, text, settings)
            else:
                (table,) = block.pieces()
                about = About.of(Codes.of(some, table, text.document_T), text, settings)
            rows = slice(some.start - latents.start, some.stop - latents.start)
            columns = {
                "latent": np.arange(some.start, some.stop, dtype=np.uint32),
                **_of_postings(about, text),
                **_of_extra(extra, rows),
            }
            arrays = [columns[name] for name in LATENTS_SCHEMA.names]
            writers[0].write(pa.table(arrays, schema=LATENTS_SCHEMA))
            writers[1].write(_examples(about.examples, some.start))


def _of_postings(about: About, text: Text) -> dict[str, np.ndarray | pa.Array]:
    silent_f, num = about.count_f == 0, len(about.count_f)
    quantiles = numbers(
        LATENTS_SCHEMA.field("quantiles").type, len(QUANTILES) * ~silent_f, about.quantiles_gJ.ravel()
    )
    counted = {"histogram": about.histogram_fJ, "bins": about.bins_fJ}
    lists = {"tokens": about.tokens, "next": about.next}
    return {
        "count": about.count_f,
        "documents": about.documents_f,
        "rate": about.count_f / max(1, text.kept),
        "sum": about.total_f,
        "squares": about.squares_f,
        "least": pa.array(about.least_f.astype(np.float32), mask=silent_f),
        "most": pa.array(about.most_f.astype(np.float32), mask=silent_f),
        "quantiles": quantiles,
        **{
            name: numbers(LATENTS_SCHEMA.field(name).type, np.full(num, found.shape[1]), found.ravel())
            for name, found in counted.items()
        },
        **{name: structs(LATENTS_SCHEMA.field(name).type, *found) for name, found in lists.items()},
    }


def _of_extra(extra: Extra, rows: slice) -> dict[str, pa.Array]:
    columns = {}
    for name in ("up", "down", "lens_up", "lens_down", "near", "together"):
        kind, ranked = LATENTS_SCHEMA.field(name).type, getattr(extra, name)
        num = rows.stop - rows.start
        columns[name] = pa.nulls(num, kind) if ranked is None else ranked.of(rows).column(kind)
    return columns


def _examples(found: Examples, first: int) -> pa.Table:
    """Return the examples of some latents from number `first` on, sorted by latent, bin and rank."""
    columns = {
        "latent": found.latent_S + np.uint32(first),
        "bin": found.bin_S,
        "rank": found.rank_S,
        "at": found.at_S,
        "code": found.code_S,
        "document": found.document_S,
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in EXAMPLES_SCHEMA]
    return pa.table(arrays, schema=EXAMPLES_SCHEMA)
