"""The answer of `attribute`, as tables, JSON, HTML and text."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sae_dist.interpret.attribute.certificate import Certificate, Differences
from sae_dist.interpret.attribute.controls import Bound
from sae_dist.interpret.explaining.explanation import Columns, plain, records, table_of

if TYPE_CHECKING:
    import pyarrow


def plain_parts(part: Any) -> dict[str, Any]:
    """Return a dataclass of numbers as JSON has it."""
    return {name: plain(each) for name, each in asdict(part).items()}


@dataclass(frozen=True)
class Agreement:
    """The agreement of gradient times code with removing codes for real.

    Attributes:
        codes: how many were removed.
        sign: the share whose sign is right; NaN: nothing moved the metric.
        rank: Spearman's rank correlation; NaN: there are fewer than three.
    """

    codes: int
    sign: float
    rank: float


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """The codes of a text by what they do to a metric. docs/circuits.md explains every column and number.

    Attributes:
        about: dictionary, model, hooks, metric, and what was left out or is remarkable.
        certificate: what latents and error carry, and to what distance the parts add up.
        differences: gradients beside finite differences.
        shown, others: gradient times code beside removal: of the codes shown, and of as many others.
        equal, random: what removing codes of latents as frequent, and random directions, does at most.
        codes_seen: columns of `table`.
        tokens_seen: columns of `tokens`.
        again: makes the attribution with another number of codes removed.
    """

    about: dict[str, Any]
    certificate: Certificate
    differences: Differences
    shown: Agreement
    others: Agreement
    equal: Bound
    random: Bound
    codes_seen: Columns
    tokens_seen: Columns
    again: "Callable[[int], Attribution]" = field(repr=False)

    @property
    def complete_to(self) -> float:
        """The distance of the sum of all parts from what the metric loses without codes and error."""
        return self.certificate.complete_to

    def check(self, exact: int) -> "Attribution":
        """Return the same with another number of codes removed for real, and of controls.

        Raises:
            ConfigError: it is no number of codes.
        """
        from sae_dist.interpret.attribute.attribute import check_exact

        check_exact(exact)
        return self.again(exact)

    @cached_property
    def table(self) -> "pyarrow.Table":
        """A row for each code, greatest effect first, as a table of pyarrow."""
        return table_of(self.codes_seen)

    @cached_property
    def tokens(self) -> "pyarrow.Table":
        """A row for each token, as a table of pyarrow."""
        return table_of(self.tokens_seen)

    @cached_property
    def latents_seen(self) -> Columns:
        """Columns of each latent, its codes added up, greatest effect first."""
        seen = self.codes_seen
        found: dict[int, dict[str, Any]] = {}
        for place, latent in enumerate(seen["latent"]):
            first = {"latent": latent, "label": seen["label"][place], "codes": 0, "effect": 0.0, "along": 0.0}
            own = found.setdefault(latent, first)
            own["codes"] += 1
            for key in ("effect", "along"):
                own[key] += seen[key][place]
        rows = sorted(found.values(), key=lambda row: -abs(row["effect"]))
        return {key: [row[key] for row in rows] for key in ("latent", "label", "codes", "effect", "along")}

    @cached_property
    def latents(self) -> "pyarrow.Table":
        """A row for each latent, its codes added up, greatest effect first, as a table of pyarrow."""
        return table_of(self.latents_seen)

    @property
    def json(self) -> dict[str, Any]:
        """Everything, as JSON has it: a number that is not finite is None."""
        names = ("certificate", "differences", "shown", "others", "equal", "random")
        found = {name: plain_parts(getattr(self, name)) for name in names}
        found["certificate"] |= {"lost": self.certificate.lost, "complete": self.certificate.complete}
        return {
            "about": self.about,
            **found,
            "codes": records(self.codes_seen),
            "latents": records(self.latents_seen),
            "tokens": records(self.tokens_seen),
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return `json` as text."""
        # JSON escapes all other control characters.
        return json.dumps(self.json, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")

    def to_html(self) -> str:
        """Return a page of its own with what a notebook shows, that needs nothing else."""
        from sae_dist.interpret.attribute.html import page

        return page(self)

    def _repr_html_(self) -> str:
        from sae_dist.interpret.attribute.html import fragment

        return fragment(self)

    def __str__(self) -> str:
        """Return the attribution as lines for a terminal."""
        from sae_dist.interpret.attribute.view import lines

        return "\n".join(lines(self))

    def __repr__(self) -> str:
        """Describe the attribution in a line."""
        about, found = self.about, self.certificate
        return (
            f"Attribution({about['metric']}: {found.clean:.3f}, {about['codes']:,} codes, complete to "
            f"{found.complete_to:.1e}, {self.shown.codes} removed)"
        )
