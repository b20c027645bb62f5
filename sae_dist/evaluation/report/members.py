"""The dictionaries of a grid or a sweep, read one after the other; their rows of metrics are not kept."""

from dataclasses import dataclass, replace
from pathlib import Path

from sae_dist.config.run import Resolved, flat
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import EXPORT, read_summary
from sae_dist.evaluation.report.files import RunFiles, read_run
from sae_dist.evaluation.report.warn import RATE, Warning, warnings
from sae_dist.evaluation.sweep import differing
from sae_dist.export.saelens import load_firing_rates

COLUMNS = ("loss/fvu", "loss/total", "latents/dead_fraction", RATE)
"""Columns of metrics.jsonl that are drawn."""
POINTS, FEWEST = 6400, 60
"""The most points of all lines of a figure together, and the fewest of one line."""
SETS_L0 = ("sae.k", "sae.sparsity", "sae.target_l0")
"""Values that move a dictionary along its line of FVU against L0; any other value begins a new line."""
NUM_COLOURS = 8
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 1.5), (7, 2, 2, 2), (12, 3), (7, 2, 2, 2, 2, 2))

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class LineStyle:
    """The look of a dictionary's line.

    Attributes:
        series: the values that it shares with the others on its line of FVU against L0.
        colour: of the series, below NUM_COLOURS; of_series, dashes: of DASHES, for the series and for itself.
    """

    series: str
    colour: int
    of_series: tuple[float, ...]
    dashes: tuple[float, ...]


@dataclass(frozen=True)
class Member:
    """A dictionary among many.

    Attributes:
        number: from 1 on, in the order of the page.
        name: its folder, within the folder of all.
        run: its files, with only the last row of metrics.
        points: for each of COLUMNS, some of its values (training tokens, value).
    """

    number: int
    name: str
    run: RunFiles
    points: dict[str, Points]
    warnings: list[Warning]
    line: LineStyle


def read_members(folder: Path, runs: dict[Path, Resolved]) -> list[Member]:
    """Read the dictionaries of a folder; `runs`: see `evaluation.sweep.runs_of`.

    Raises:
        ConfigError: a file is damaged, or the folders of all are gone.
    """
    if not any(each.is_dir() for each in runs):
        raise ConfigError(
            f"{folder} is a grid of {len(runs)} dictionaries, whose folders are all gone; "
            "copy one back, or train the grid again"
        )
    most = max(POINTS // len(runs), FEWEST)
    found = []
    for number, ((each, cfg), line) in enumerate(zip(runs.items(), lines_of(runs), strict=True), start=1):
        there = each.is_dir()
        run = read_run(each) if there else _gone(each, cfg)
        found.append(
            Member(
                number=number,
                name=each.relative_to(folder).as_posix(),
                run=replace(run, rows=run.rows[-1:]),
                points={column: _thinned(run, column, most) for column in COLUMNS},
                warnings=warnings(run, load_firing_rates(each / EXPORT)) if there else [GONE],
                line=line,
            )
        )
    return found


GONE = Warning(
    "The dictionary's folder is gone.",
    "Shown is what the grid's summary.json says of it; a run with its values trains the same one.",
)


def _gone(folder: Path, cfg: Resolved) -> RunFiles:
    """Return what its grid knows of a dictionary whose folder is gone."""
    grid = read_summary(folder.parent)
    summary = grid.get("dictionaries", {}).get(folder.name, {})
    return RunFiles(folder, folder.parent, cfg, "", summary, {}, [], None)


def _thinned(run: RunFiles, column: str, most: int) -> Points:
    """Return at most so many points, the last among them."""
    points = [(row["tokens"], row[column]) for row in run.rows if row.get(column) is not None]
    step = -(-len(points) // most) or 1
    return points[::-1][::step][::-1]


def lines_of(runs: dict[Path, Resolved]) -> list[LineStyle]:
    """Assign lines: a colour to each series, and dashes to the dictionaries in it."""
    keys = [key for key in differing(runs) if key not in SETS_L0]
    sizes: dict[str, int] = {}
    found = []
    for cfg in runs.values():
        values = flat(cfg)
        series = ", ".join(f"{key.split('.')[-1]}={values[key]}" for key in keys)
        place = sizes[series] = sizes.get(series, -1) + 1
        again, colour = divmod(list(sizes).index(series), NUM_COLOURS)
        own, of_series = (DASHES[n % len(DASHES)] for n in (place + again, again))
        found.append(LineStyle(series, colour, of_series, own))
    return found
