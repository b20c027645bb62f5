"""A small atlas of random text and codes, whole: what a pass leaves, described as a pass describes it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sae_dist.atlas.describe.lists import Extra, Ranked
from sae_dist.atlas.describe.part import describe_part
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.manifest import VERSION, Manifest, sums_of
from sae_dist.atlas.schema import (
    DOCUMENTS,
    KEPT,
    LEFT_OUT,
    OUTLIER,
    POSTINGS,
    TOKENS,
    part_file,
    part_latents,
    parts,
)
from tests.helpers.atlas import index

SETTINGS = Settings(top=5, bins=3, each=2, tokens=4)


def described(folder: Path, num_latents=600, dictionary="0" * 64, **how) -> Path:
    """Write a whole atlas; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    index(folder, num_latents, **how)
    each = part_latents(num_latents)
    for part in range(parts(num_latents)):
        first, end = part * each, min((part + 1) * each, num_latents)
        describe_part(folder, part, num_latents, SETTINGS, extra(first, end, num_latents))
    state = pq.read_table(folder / TOKENS)["state"].to_numpy()
    counts = [
        pq.read_table(part_file(folder, POSTINGS, part))["latent"] for part in range(parts(num_latents))
    ]
    count_F = sum(np.bincount(column.to_numpy(), minlength=num_latents) for column in counts)
    sums = {path.relative_to(folder).as_posix(): sums_of(path) for path in folder.rglob("*.parquet")}
    Manifest(
        version=VERSION,
        kind="topk",
        num_latents=num_latents,
        k=8,
        model="embedded",
        hook="layers.1:out",
        target_hook=None,
        context=32,
        dictionary=dictionary,
        text="random tokens",
        tokens=len(state),
        documents=pq.read_metadata(folder / DOCUMENTS).num_rows,
        kept=int((state == KEPT).sum()),
        left_out=int((state == LEFT_OUT).sum()),
        outliers=int((state == OUTLIER).sum()),
        postings=int(count_F.sum()),
        silent=int((count_F == 0).sum()),
        too_rare=int(((count_F > 0) & (count_F < SETTINGS.few)).sum()),
        top=SETTINGS.top,
        bins=SETTINGS.bins,
        each=SETTINGS.each,
        few=SETTINGS.few,
        lens="0 positions: not asked for",
        effects=None,
        near=None,
        files={name: whole for name, (whole, _) in sums.items()},
        footers={name: footer for name, (_, footer) in sums.items()},
    ).write(folder)
    return folder


def extra(first: int, end: int, num_latents: int) -> Extra:
    """Return logit effects and neighbours of some latents: tokens 3 and 4 up, the two latents that follow."""
    own = np.arange(first, end)
    token = np.tile([[3, 4]], (len(own), 1))
    logit = np.tile(np.array([[1.5, 0.5]], np.float32), (len(own), 1))
    other = (own[:, None] + [[1, 2]]) % num_latents
    return Extra(
        up=Ranked(token, (logit,)),
        down=Ranked(token + 2, (-logit,)),
        near=Ranked(other, (logit / 3,)),
        together=Ranked(other, (logit / 2, 10 * logit)),
    )
