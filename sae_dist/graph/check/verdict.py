"""The verdict of a check in words, with its tables: what pages and the command show first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sae_dist.core.text import columns

Level = Literal["explains", "partly", "little"]


@dataclass(frozen=True)
class Table:
    """A table of ready-made text. A cell that is a node's id alone stands for the node."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __str__(self) -> str:
        """Return the table as lines of text."""
        lines = [self.title, *columns([self.header, *self.rows])]
        return "\n".join([*lines, self.note] if self.note else lines)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The words for what interventions on the real model show of a graph.

    Attributes:
        level: the model does what the graph says; in part; or the graph explains little.
        lines: sentences, the verdict itself first.
        tables: what was measured.
        numbers: JSON-able: the same with all digits, and the settings.
    """

    level: Level
    lines: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return sentences and tables as lines of text."""
        return "\n".join([*self.lines, *(f"\n{table}" for table in self.tables)])

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON-able values."""
        tables = [
            {"title": each.title, "header": list(each.header), "note": each.note}
            | {"rows": [list(row) for row in each.rows]}
            for each in self.tables
        ]
        return {
            "level": self.level,
            "lines": list(self.lines),
            "tables": tables,
            "numbers": dict(self.numbers),
        }
