"""Everything that an atlas says of the latents of a part, from their postings and the text.

Letters: f latents of a part; P codes, sorted by latent and place; S examples.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from sae_dist.atlas.describe.blocks import AT_ONCE, blocks
from sae_dist.atlas.describe.codes import Codes
from sae_dist.atlas.describe.information import best_tokens
from sae_dist.atlas.describe.lists import Extra, numbers, structs
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.describe.text import NO_TOKEN, Text
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
        at_once: codes in memory, at most, unless one latent has more; the files do not depend on it.
    """
    text = text or Text.open(folder)
    each = part_latents(num_latents)
    latents = range(part * each, min((part + 1) * each, num_latents))
    writers = [
        TableWriter(part_file(folder, name, part), schema, ROW_GROUPS[name])
        for name, schema in ((LATENTS, LATENTS_SCHEMA), (EXAMPLES, EXAMPLES_SCHEMA))
    ]
    with writers[0], writers[1]:
        for some, table in blocks(folder, part, latents, at_once):
            codes = Codes.of(some, table, text.document_T)
            rows = slice(some.start - latents.start, some.stop - latents.start)
            columns = {
                "latent": np.arange(some.start, some.stop, dtype=np.uint32),
                **_of_codes(codes, text, settings),
                **_of_tokens(codes, text, settings),
                **_of_extra(extra, rows),
            }
            arrays = [columns[name] for name in LATENTS_SCHEMA.names]
            writers[0].write(pa.table(arrays, schema=LATENTS_SCHEMA))
            writers[1].write(_examples(codes, settings))


def _of_codes(codes: Codes, text: Text, settings: Settings) -> dict[str, np.ndarray | pa.Array]:
    silent_f = ~codes.fires_f
    total_f, squares_f = codes.sums()
    quantiles = numbers(
        LATENTS_SCHEMA.field("quantiles").type,
        len(QUANTILES) * codes.fires_f,
        codes.quantiles().ravel(),
    )
    counted = {"histogram": codes.histogram(), "bins": codes.in_bins(settings.bins)}
    return {
        "count": codes.count_f,
        "documents": codes.documents_f,
        "rate": codes.count_f / max(1, text.kept),
        "sum": total_f,
        "squares": squares_f,
        "least": pa.array(codes.least_f().astype(np.float32), mask=silent_f),
        "most": pa.array(codes.most_f.astype(np.float32), mask=silent_f),
        "quantiles": quantiles,
        **{
            name: numbers(LATENTS_SCHEMA.field(name).type, np.full(codes.num, found.shape[1]), found.ravel())
            for name, found in counted.items()
        },
    }


def _of_tokens(codes: Codes, text: Text, settings: Settings) -> dict[str, pa.Array]:
    token_P, follower_P = text.token_T[codes.at_P], text.follower_T[codes.at_P]
    there_P = follower_P != NO_TOKEN
    found = {
        "tokens": best_tokens(codes.latent_P, token_P, text.count_V, codes.num, settings.tokens),
        "next": best_tokens(
            codes.latent_P[there_P], follower_P[there_P], text.followed_V, codes.num, settings.next
        ),
    }
    return {name: structs(LATENTS_SCHEMA.field(name).type, *lists) for name, lists in found.items()}


def _of_extra(extra: Extra, rows: slice) -> dict[str, pa.Array]:
    columns = {}
    for name in ("up", "down", "lens_up", "lens_down", "near", "together"):
        kind, ranked = LATENTS_SCHEMA.field(name).type, getattr(extra, name)
        num = rows.stop - rows.start
        columns[name] = pa.nulls(num, kind) if ranked is None else ranked.of(rows).column(kind)
    return columns


def _examples(codes: Codes, settings: Settings) -> pa.Table:
    """Return the examples of some latents, sorted by latent, bin and rank."""
    found = codes.examples(settings)
    latent_S = np.concatenate([each.latent_S for each in found.values()])
    rank_S = np.concatenate([each.rank_S for each in found.values()])
    which_S = np.concatenate([each.which_S for each in found.values()])
    bin_S = np.concatenate([np.full(len(each.which_S), number) for number, each in found.items()])
    order_S = np.argsort(latent_S, kind="stable")
    which_S = which_S[order_S]
    columns = {
        "latent": latent_S[order_S] + np.uint32(codes.first),
        "bin": bin_S[order_S],
        "rank": rank_S[order_S],
        "at": codes.at_P[which_S],
        "code": codes.code_P[which_S],
        "document": codes.document_P[which_S],
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in EXAMPLES_SCHEMA]
    return pa.table(arrays, schema=EXAMPLES_SCHEMA)
