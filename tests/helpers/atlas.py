"""Small atlases made without a model: random text and codes, in the files that a pass over text leaves."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from sae_dist.atlas.postings import NO_PLACE, merge_part, write_window
from sae_dist.atlas.schema import (
    DOCUMENTS,
    DOCUMENTS_SCHEMA,
    KEPT,
    LEFT_OUT,
    OUTLIER,
    ROW_GROUPS,
    TOKENS,
    TOKENS_SCHEMA,
    WORK,
    part_latents,
    parts,
)
from sae_dist.atlas.tables import write_table


def text(folder: Path, documents=40, longest=60, vocabulary=500, context=32, seed=0, ids=None) -> np.ndarray:
    """Write documents of random tokens, each segment after a special one (id 0); return each row's place.

    Rows are the kept tokens in reading order; every 50th token is an outlier. With `ids`, tokens are the
    first of these in place of random ones.
    """
    rng = np.random.default_rng(seed)
    token, document, position, about = [], [], [], []
    for number in range(documents):
        length = int(rng.integers(2, longest))
        place = 0
        while place < length:
            body = rng.zipf(1.5, min(context - 1, length - place)) % (vocabulary - 1) + 1
            if ids is not None:
                body, ids = np.array(ids[: len(body)]), ids[len(body) :]
            token += [0, *body.tolist()]
            document += [number] * (len(body) + 1)
            position += range(len(body) + 1)
            place += len(body)
    state = np.full(len(token), KEPT, np.uint8)
    state[::50] = OUTLIER
    state[np.array(token) == 0] = LEFT_OUT
    at = np.arange(len(token), dtype=np.uint32)
    write_table(
        folder / TOKENS,
        pa.table(
            [at, *(np.array(each, np.uint32) for each in (token, document, position)), state],
            schema=TOKENS_SCHEMA,
        ),
        ROW_GROUPS["tokens"],
    )
    for number in range(documents):
        inside = np.flatnonzero(np.array(document) == number)
        about.append((number, 0, number, inside[0], len(inside), int((state[inside] == KEPT).sum())))
    columns = [pa.array([row[n] for row in about], DOCUMENTS_SCHEMA.field(n).type) for n in range(6)]
    write_table(folder / DOCUMENTS, pa.table(columns, schema=DOCUMENTS_SCHEMA), ROW_GROUPS["documents"])
    return at[state == KEPT]


def codes(rows: int, num_latents: int, k=8, seed=0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return latent, row and code of random codes, k a row; low latents fire often, the highest never."""
    rng = np.random.default_rng(seed)
    weight_F = 1 / np.arange(1, num_latents)
    score = np.log(weight_F) + rng.gumbel(size=(rows, num_latents - 1))
    latent = np.argpartition(-score, k, axis=1)[:, :k]
    code = np.exp(rng.normal(size=latent.shape)).astype(np.float32)
    row = np.repeat(np.arange(rows), k)
    return latent.ravel().astype(np.uint32), row.astype(np.uint32), code.ravel()


def index(folder: Path, num_latents=600, window_rows=300, **how) -> list[Path]:
    """Write text, windows and postings of a random atlas; return its windows."""
    place_R = text(folder, **how)
    latent_P, row_P, code_P = codes(len(place_R), num_latents)
    windows = []
    for number, first in enumerate(range(0, len(place_R), window_rows)):
        mine = (row_P >= first) & (row_P < first + window_rows)
        windows.append(folder / WORK / "codes" / f"window-{number:05d}.npy")
        write_window(windows[-1], latent_P[mine], row_P[mine], code_P[mine])
    each = part_latents(num_latents)
    for part in range(parts(num_latents)):
        mine = range(part * each, min((part + 1) * each, num_latents))
        merge_part(folder, part, mine, windows, place_R)
    assert NO_PLACE not in place_R
    return windows
