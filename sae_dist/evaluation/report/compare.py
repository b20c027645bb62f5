"""Numbers of many dictionaries: next to each other, those that all share once, and the total cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.core.run_folder import read_summary
from sae_dist.evaluation.report.members import Member
from sae_dist.evaluation.report.numbers import ENERGY, Number, plain, shown, speed

SEVERAL = "several"


@dataclass(frozen=True)
class Row:
    """A line of a table with a column for each dictionary; a cell's `means` says why it has no value."""

    label: str
    cells: list[Number]
    means: str = ""
    indent: bool = False


def side_by_side(columns: Sequence[list[Number]]) -> list[Row]:
    """Arrange numbers of the same key in rows, in the order of the columns."""
    by_key = [{number.key or number.label: number for number in column} for column in columns]
    rows = []
    for key in merged(by_key):
        cells = [its.get(key, Number("", "")) for its in by_key]
        first = next((cell for cell in cells if cell.value), next(cell for cell in cells if cell.label))
        rows.append(Row(first.label, cells, first.means, first.indent))
    return rows


def merged(orders: Iterable[Iterable[str]]) -> list[str]:
    """Merge orders of words into one, each word once; a new word follows the word before it."""
    found: list[str] = []
    for order in orders:
        place = 0
        for word in order:
            if word not in found:
                found.insert(place, word)
            place = found.index(word) + 1
    return found


def shared(columns: Sequence[list[Number]]) -> list[Number]:
    """Return each number once: its value if all have the same, and the parts of its meaning in common."""
    found = []
    for row in side_by_side(columns):
        values = {cell.value for cell in row.cells}
        parts = [cell.means.split("; ") for cell in row.cells]
        means = "; ".join(part for part in parts[0] if all(part in others for others in parts))
        found.append(Number(row.label, values.pop() if len(values) == 1 else SEVERAL, means))
    return found


def deep(members: Sequence[Member]) -> list[Row]:
    """List the numbers of eval.json that summary.json does not have, by their path in it."""
    columns = []
    for each in members:
        content = {
            key: value
            for key, value in (each.run.evaluation or {}).items()
            if key not in each.run.summary and key != "step"
        }
        columns.append([Number(path, plain(value)) for path, value in _numbers(content, "")])
    return side_by_side(columns)


def _numbers(content: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in content.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{path}{key} › ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((path + key, value))
    return found


def speeds(members: Sequence[Member]) -> list[Row]:
    """List time and memory of each dictionary; GPU time and energy of a grid are its cost as a whole."""
    columns = []
    for each in members:
        mine = each.run.started == each.run.folder
        numbers = speed(each.run) if each.run.summary else []
        columns.append([one for one in numbers if one.value and (mine or one.key not in ENERGY)])
    return side_by_side(columns)


def cost(members: Sequence[Member]) -> list[Number]:
    """Sum up the cost of all dictionaries, as far as their training has ended."""
    known = [each for each in members if each.run.summary]
    of = f"; of the {len(known)} of {len(members)} that have ended" if len(known) < len(members) else ""
    found = []
    for label, key, form, means, over_grid in (
        ("GPU time", "gpu_hours", "h", "of training, all GPUs together", max),
        ("Energy", "joules", "J", "of all GPUs", max),
        ("Time on the stream", "stream_seconds", "s", "of one process; a grid's stream counts once", max),
        ("Time on the dictionaries", "dictionary_seconds", "s", "of one process", sum),
    ):
        total = _total(known, key, over_grid)
        if total is not None:
            found.append(Number(label, shown(total, form), f"{means}{of}"))
    if not any(number.label == "Energy" for number in found):
        found.append(Number("Energy", "", "none: no GPU was measured"))
    for started in starts(members):
        saved = read_summary(started).get("cost")
        if saved:
            means = f"of the {saved['alone_seconds']:,.0f} s that a run for each would have taken"
            found.append(Number("One stream for all", f"{saved['share']:.0%}", means))
    return found


def starts(members: Sequence[Member]) -> list[Path]:
    """List the folders whose commands trained the dictionaries: a grid counts once."""
    return list(dict.fromkeys(each.run.started for each in members))


def _total(members: Sequence[Member], key: str, over_grid: Callable[[list[float]], float]) -> float | None:
    """Sum over commands; `over_grid` combines the values of one grid's dictionaries."""
    by_start: dict[Path, list[float]] = {}
    for each in members:
        if each.run.summary.get(key) is not None:
            by_start.setdefault(each.run.started, []).append(each.run.summary[key])
    return sum(map(over_grid, by_start.values())) if by_start else None
