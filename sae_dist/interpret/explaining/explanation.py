"""The answer of `explain`, as tables, JSON, HTML and text.

Letters: as core.types.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae_dist.interpret.codes import Codes

if TYPE_CHECKING:
    import pyarrow

Columns = dict[str, list[Any]]
"""The columns of a table by name, each with a value for every row."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The latents that fired on a text. docs/python.md explains every column.

    Attributes:
        about: dictionary, model, hooks, special tokens around the text, FVU, and why something is missing.
        codes: of every token, in order; those that are not special or outliers are evaluation's to the bit.
        error: what the dictionary does not explain of each token [S, E].
        pairs: columns of `table`.
        tokens_seen: columns of `tokens`.
        latents_seen: columns of `latents`.
    """

    about: dict[str, Any]
    codes: Codes
    error: Tensor
    pairs: Columns
    tokens_seen: Columns
    latents_seen: Columns

    @cached_property
    def table(self) -> "pyarrow.Table":
        """A row for each token and latent that fired on it, as a table of pyarrow."""
        return table_of(self.pairs)

    @cached_property
    def tokens(self) -> "pyarrow.Table":
        """A row for each token, special ones included, as a table of pyarrow."""
        return table_of(self.tokens_seen)

    @cached_property
    def latents(self) -> "pyarrow.Table":
        """A row for each latent that fired on a token that counts, most noteworthy first."""
        return table_of(self.latents_seen)

    @property
    def json(self) -> dict[str, Any]:
        """Everything but `error`, as JSON has it: a number that is not finite is None."""
        return {
            "about": self.about,
            "tokens": records(self.tokens_seen),
            "latents": records(self.latents_seen),
            "codes": records(self.pairs),
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return `json` as text."""
        # JSON escapes all other control characters.
        return json.dumps(self.json, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")

    def to_html(self) -> str:
        """Return a page of its own with what a notebook shows, that needs nothing else."""
        from sae_dist.interpret.explaining.html import page

        return page(self)

    def _repr_html_(self) -> str:
        from sae_dist.interpret.explaining.html import fragment

        return fragment(self)

    def __str__(self) -> str:
        """Return the explanation as lines for a terminal."""
        from sae_dist.interpret.explaining.text import lines

        return "\n".join(lines(self))

    def __repr__(self) -> str:
        """Describe the explanation in a line."""
        about, fvu = self.about, self.about["fvu"]
        explained = "" if fvu is None else f", FVU {fvu:.3f}"
        found = len(self.latents_seen["latent"])
        return f"Explanation({about['tokens']} tokens, {found:,} latents at {about['hook']}{explained})"


def records(columns: Columns) -> list[dict[str, Any]]:
    """Return rows in place of columns, without numbers that are not finite."""
    rows = zip(*columns.values(), strict=True)
    return [{key: plain(each) for key, each in zip(columns, row, strict=True)} for row in rows]


def plain(value: Any) -> Any:
    """Return a value; None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_of(columns: Columns) -> "pyarrow.Table":
    """Return columns as a table of pyarrow."""
    import pyarrow

    texts = ("token", "label", "next_token", "next_is")
    kinds = dict.fromkeys(texts, pyarrow.string())
    kinds |= dict.fromkeys(
        ("token_id", "latent", "position", "at", "count", "codes", "latents", "next_id"), pyarrow.int64()
    )
    kinds |= dict.fromkeys(("special", "outlier", "counted", "unusual", "beyond_controls"), pyarrow.bool_())
    return pyarrow.table(
        {key: pyarrow.array(each, kinds.get(key, pyarrow.float64())) for key, each in columns.items()}
    )
