"""The tables of an atlas: names, columns, and how latents are dealt out to files.

A place `at` is the number of a token in the atlas's text, 0 for the first: lane after lane, and within a lane
in reading order, so that a document's tokens stand together. What a table says of a latent stands in its
part, and parts depend on the number of latents alone, not on how many ranks wrote them.
"""

from pathlib import Path

import pyarrow as pa

from sae_dist.core.run_folder import ATLAS_MANIFEST

MANIFEST = ATLAS_MANIFEST
TOKENS, DOCUMENTS = "tokens.parquet", "documents.parquet"
POSTINGS, LATENTS, EXAMPLES = "postings", "latents", "examples"
"""Folders with a file for each part."""
WORK = "work"
"""The folder of what is kept only until an atlas is complete."""
ROW_GROUPS = {
    "tokens": 1 << 13,
    "documents": 1 << 13,
    "postings": 1 << 14,
    "latents": 1 << 10,
    "examples": 1 << 13,
}
"""Rows in a group of a table, which is the least that a reader of a few rows reads."""
MOST_PLACES = 2**32 - 1

KEPT, LEFT_OUT, OUTLIER = 0, 1, 2
"""States of a token: encoded; no activation (special, masked ...); an activation of outlying norm."""

TOKENS_SCHEMA = pa.schema(
    {
        "at": pa.uint32(),
        "token": pa.uint32(),  # its id
        "document": pa.uint32(),
        "position": pa.uint32(),  # in the segment that the model read: a 0 begins one
        "state": pa.uint8(),
    }
)
DOCUMENTS_SCHEMA = pa.schema(
    {
        "document": pa.uint32(),
        "lane": pa.uint32(),
        "number": pa.uint64(),  # in its lane
        "begin": pa.uint32(),  # the place of its first token
        "tokens": pa.uint32(),  # special ones included
        "kept": pa.uint32(),
    }
)
POSTINGS_SCHEMA = pa.schema({"latent": pa.uint32(), "at": pa.uint32(), "code": pa.float32()})
"""A row for each code above zero, sorted by latent, then by place."""
TOP = -1
"""The bin of the examples with the greatest codes. Bin 0 has codes above half of the greatest, bin 1 above a
quarter, and so on; the last has all the rest."""
EXAMPLES_SCHEMA = pa.schema(
    {
        "latent": pa.uint32(),
        "bin": pa.int8(),
        "rank": pa.uint16(),
        "at": pa.uint32(),
        "code": pa.float32(),
        "document": pa.uint32(),
    }
)
_TOKEN = pa.struct({"token": pa.uint32(), "count": pa.uint32(), "bits": pa.float32()})
_LOGIT = pa.struct({"token": pa.uint32(), "logit": pa.float32()})
LATENTS_SCHEMA = pa.schema(
    {
        "latent": pa.uint32(),
        "count": pa.uint64(),  # of places where it fires
        "documents": pa.uint32(),  # in which it fires
        "rate": pa.float64(),  # count / kept tokens
        "sum": pa.float64(),  # of its codes
        "squares": pa.float64(),  # sum of the squares of its codes
        "least": pa.float32(),
        "most": pa.float32(),
        "quantiles": pa.list_(pa.float32()),  # of its codes, at QUANTILES
        "histogram": pa.list_(pa.uint32()),  # HISTOGRAM equal bins from 0 to `most`
        "bins": pa.list_(pa.uint32()),  # codes in each bin of the examples
        "tokens": pa.list_(_TOKEN),  # that it fires on, by mutual information with firing, in bits
        "next": pa.list_(_TOKEN),  # that follow where it fires
        "up": pa.list_(_LOGIT),  # logits that its decoder row raises most, through the unembedding alone
        "down": pa.list_(_LOGIT),
        "lens_up": pa.list_(_LOGIT),  # and through the mean Jacobian of the layers between, too
        "lens_down": pa.list_(_LOGIT),
        "near": pa.list_(pa.struct({"latent": pa.uint32(), "cosine": pa.float32()})),  # decoder rows
        "together": pa.list_(  # latents that fire where it does: the share of its places, and by chance
            pa.struct({"latent": pa.uint32(), "share": pa.float32(), "lift": pa.float32()})
        ),
    }
)
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
HISTOGRAM = 48
SMALLEST_PART, MOST_PARTS = 256, 64


def part_latents(num_latents: int) -> int:
    """Return how many latents a part has: a power of two; the last part may have fewer."""
    wanted = max(SMALLEST_PART, -(-num_latents // MOST_PARTS))
    return 1 << (wanted - 1).bit_length()


def parts(num_latents: int) -> int:
    """Return the number of parts."""
    return -(-num_latents // part_latents(num_latents))


def part_file(folder: Path, table: str, part: int) -> Path:
    """Return the file of a table's part, in an atlas's folder."""
    return folder / table / f"part-{part:05d}.parquet"
