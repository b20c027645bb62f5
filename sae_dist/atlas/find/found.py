"""The latents that a search found, best first: as a table, as JSON, for a terminal and for a notebook."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sae_dist.atlas.read.view import chip, visible_token
from sae_dist.core.text import columns

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas
    from sae_dist.atlas.read.rows import Latent

TOKENS = 5
"""Tokens shown of each latent."""
WORDS = {"both": "places", "of": "of", "share": "share", "lift": "lift", "strongest": "strongest on"}
"""Headings of what a search knows of its hits."""


@dataclass(frozen=True)
class Hit:
    """A latent that was found.

    Attributes:
        score: the greater the better; `Found.score` names it.
        about: what else the search knows of it: `both` (places where it fires and what was looked for is),
            `of` how many, `share`, `lift`, `strongest` (a token), `label`.
    """

    latent: int
    score: float
    about: Mapping[str, Any] = field(default_factory=dict)


class Found:
    """The latents that a search found.

    Attributes:
        how: which way it searched, in a sentence.
        score: what the scores are.
        hits: best first.
    """

    def __init__(self, atlas: "Atlas", how: str, score: str, hits: list[Hit]):
        self.atlas, self.how, self.score, self.hits = atlas, how, score, hits

    def __iter__(self) -> Iterator[Hit]:
        """Iterate over the hits, best first."""
        return iter(self.hits)

    def __len__(self) -> int:
        """Return the number of hits."""
        return len(self.hits)

    def __getitem__(self, place: int) -> Hit:
        """Return a hit by its place."""
        return self.hits[place]

    @property
    def latents(self) -> list[int]:
        """The numbers of the latents, best first."""
        return [each.latent for each in self.hits]

    @cached_property
    def described(self) -> list["Latent"]:
        """All that the atlas says of each hit."""
        return [self.atlas.latent(each.latent) for each in self.hits]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The hits as JSON has them, with rate, count, tokens and label of each."""
        labels = self.atlas.labels.of(self.latents)
        found = []
        for hit, latent in zip(self.hits, self.described, strict=True):
            label = labels.get(hit.latent)
            row = {"latent": hit.latent, self.score: hit.score, **hit.about}
            row |= {"rate": latent.rate, "count": latent.count, "most": latent.most}
            row |= {"tokens": [each.text for each in latent.tokens or ()][:TOKENS]}
            row |= {"label": label.text if label else None, "state": label.state if label else None}
            found.append({key: _plain(value) for key, value in row.items()})
        return found

    @property
    def table(self) -> pa.Table:
        """The hits as a table of pyarrow."""
        return pa.Table.from_pylist(self.records)

    @property
    def json(self) -> dict[str, Any]:
        """The hits, and which way they were found, as JSON has them."""
        return {"how": self.how, "score": self.score, "latents": self.records}

    def to_json(self, indent: int | None = None) -> str:
        """Return `json` as text."""
        return json.dumps(self.json, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")

    @property
    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The headings and cells of what a person sees, as text."""
        extra = [key for key in WORDS if any(key in hit.about for hit in self.hits)]
        labelled = any(record["label"] for record in self.records)
        headings = ["latent", self.score, *(WORDS[key] for key in extra), "rate", "fires on"]
        rows = []
        for record in self.records:
            row = [str(record["latent"]), number(record[self.score])]
            row += [_cell(record.get(key)) for key in extra]
            tokens = "  ".join(chip(each) for each in record["tokens"])
            row += [number(record["rate"]), tokens]
            rows.append(row + [visible_token(record["label"] or "")] * labelled)
        return headings + ["label"] * labelled, rows

    def __str__(self) -> str:
        """Return lines for a terminal."""
        headings, rows = self.rows
        lines = columns([headings, *rows], None) if rows else ["no latent was found"]
        return "\n".join([self.how, "", *lines])

    def __repr__(self) -> str:
        """Describe the result in a line."""
        return (
            f"Found({len(self)} latents: {', '.join(map(str, self.latents[:8]))}{', ...' * (len(self) > 8)})"
        )

    def _repr_html_(self) -> str:
        from sae_dist.core.template import rendered

        headings, rows = self.rows
        values = {"how": self.how, "headings": headings, "rows": rows}
        return rendered(Path(__file__).with_name("found.html"), values)


def number(value: Any) -> str:
    """Return a number in few digits; what is none as a dash."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "-"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    )


def _cell(value: Any) -> str:
    return chip(value) if isinstance(value, str) else number(value)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
