"""A small atlas with tables of latents and examples, computed here by brute force from its postings."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae_dist.atlas.schema import (
    DOCUMENTS,
    EXAMPLES,
    EXAMPLES_SCHEMA,
    HISTOGRAM,
    KEPT,
    LATENTS,
    LATENTS_SCHEMA,
    MANIFEST,
    POSTINGS,
    QUANTILES,
    TOKENS,
    TOP,
    part_file,
    part_latents,
    parts,
)
from sae_dist.atlas.tables import write_table
from tests.helpers.atlas import index

BINS, EACH, SHOWN, LISTED = 3, 2, 5, 4


def described(folder: Path, num_latents=600, dictionary="0" * 64, model="embedded", **how) -> Path:
    """Write a whole atlas: text, postings, latents, examples and manifest; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    index(folder, num_latents, **how)
    tokens = pq.read_table(folder / TOKENS).to_pydict()
    kept = sum(each == KEPT for each in tokens["state"])
    each = part_latents(num_latents)
    for part in range(parts(num_latents)):
        mine = range(part * each, min((part + 1) * each, num_latents))
        describe(folder, part, mine, tokens)
    facts = {
        "version": 1,
        "kind": "topk",
        "num_latents": num_latents,
        "k": 8,
        "model": model,
        "hook": "layers.1:out",
        "target_hook": None,
        "tokens": len(tokens["at"]),
        "kept": kept,
        "left_out": {"special": 0},
        "outliers": 0,
        "documents": pq.read_metadata(folder / DOCUMENTS).num_rows,
        "text": "random tokens",
        "context": 32,
        "dictionary": dictionary,
        "settings": {"top": SHOWN, "bins": BINS, "each": EACH},
        "too_rare": 0,
        "silent": 0,
        "lens": None,
        "effects": None,
        "files": {},
    }
    (folder / MANIFEST).write_text(json.dumps(facts))
    return folder


def describe(folder: Path, part: int, latents: range, tokens: dict) -> None:
    """Write a part's latents and examples."""
    postings = pq.read_table(part_file(folder, POSTINGS, part)).to_pydict()
    latent_P, at_P, code_P = (np.array(postings[name]) for name in ("latent", "at", "code"))
    token_T, document_T = np.array(tokens["token"]), np.array(tokens["document"])
    kept_V = np.bincount(token_T[np.array(tokens["state"]) == KEPT], minlength=token_T.max() + 1)
    rows, examples = [], []
    for latent in latents:
        mine = latent_P == latent
        at, code = at_P[mine], code_P[mine].astype(np.float32)
        rows.append(latent_row(latent, at, code, token_T, document_T, kept_V, latents))
        examples += example_rows(latent, at, code, document_T)
    columns = [
        pa.array([row[name] for row in rows], LATENTS_SCHEMA.field(name).type)
        for name in LATENTS_SCHEMA.names
    ]
    write_table(part_file(folder, LATENTS, part), pa.table(columns, schema=LATENTS_SCHEMA), 64)
    columns = [
        pa.array([row[n] for row in examples], EXAMPLES_SCHEMA.field(n).type)
        for n in range(len(EXAMPLES_SCHEMA.names))
    ]
    write_table(part_file(folder, EXAMPLES, part), pa.table(columns, schema=EXAMPLES_SCHEMA), 128)


def bits(both: int, one: int, other: int, total: int) -> float:
    """Return the mutual information of two events from the counts of both, of each, and of all."""
    cells = [(both, one, other), (one - both, one, total - other)]
    cells += [(other - both, total - one, other), (total - one - other + both, total - one, total - other)]
    return sum(n / total * np.log2(n * total / (a * b)) for n, a, b in cells if n)


def latent_row(latent, at, code, token_T, document_T, kept_V, latents) -> dict:
    """Return a row of the table of latents."""
    count, kept = len(at), int(kept_V.sum())
    ids, times = np.unique(token_T[at], return_counts=True) if count else ((), ())
    telling = [
        {"token": int(token), "count": int(n), "bits": bits(int(n), count, int(kept_V[token]), kept)}
        for token, n in zip(ids, times, strict=True)
    ]
    telling.sort(key=lambda one: -one["bits"])
    other = latents[(latent + 1 - latents.start) % len(latents)]
    most = float(code.max()) if count else 0.0
    return {
        "latent": latent,
        "count": count,
        "documents": len(np.unique(document_T[at])) if count else 0,
        "rate": count / kept,
        "sum": float(code.sum(dtype=np.float64)),
        "squares": float(np.square(code, dtype=np.float64).sum()),
        "least": float(code.min()) if count else 0.0,
        "most": most,
        "quantiles": np.quantile(code, QUANTILES).tolist() if count else [],
        "histogram": np.histogram(code, HISTOGRAM, (0, most or 1))[0].tolist() if count else [],
        "bins": [len(each) for each in binned(code)],
        "tokens": telling[:LISTED],
        "next": [],
        "up": [{"token": 3, "logit": 1.5}, {"token": 4, "logit": 0.5}],
        "down": [{"token": 5, "logit": -1.0}],
        "lens_up": None,
        "lens_down": None,
        "near": [{"latent": other, "cosine": 0.5}],
        "together": [{"latent": other, "share": 0.25, "lift": 3.0}] if count else [],
    }


def binned(code: np.ndarray) -> list[np.ndarray]:
    """Return which codes are in each bin: above a half, a quarter ... of the greatest, and the rest."""
    if not len(code):
        return [np.empty(0, np.int64)] * BINS
    number = np.minimum(np.floor(-np.log2(code / code.max())), BINS - 1)
    return [np.flatnonzero(number == each) for each in range(BINS)]


def example_rows(latent, at, code, document_T) -> list[tuple]:
    """Return the rows of examples of a latent: the greatest, one of a document, and the first of each bin."""
    found, seen = [], set()
    for place in np.lexsort((at, -code)):
        document = int(document_T[at[place]])
        if document not in seen and len(seen) < SHOWN:
            seen.add(document)
            found.append((latent, TOP, len(seen) - 1, int(at[place]), float(code[place]), document))
    for number, places in enumerate(binned(code)):
        for rank, place in enumerate(places[:EACH]):
            row = (latent, number, rank, int(at[place]), float(code[place]), int(document_T[at[place]]))
            found.append(row)
    return found
