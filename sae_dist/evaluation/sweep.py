"""The runs of a sweep in one table, as text and CSV, and plots of FVU against L0 and width."""

import csv
from pathlib import Path
from typing import Any

from sae_dist.config.grid import member_folders, members, varied
from sae_dist.config.resolve import SAME_RUN
from sae_dist.config.run import Resolved, flat, load_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import replacing
from sae_dist.core.run_folder import CONFIG, SWEEP_PLOT, SWEEP_TABLE, read_summary, status
from sae_dist.core.text import columns
from sae_dist.evaluation.axes import spanned
from sae_dist.metrics.drawing import plain_settings

ALWAYS = ("sae.num_latents", "sae.k")
UNSAID = tuple(key for key in SAME_RUN if key != "topology")
"""Sections and keys that do not affect which dictionary is trained, or how."""
FILLED_IN = ("sae.aux_k", "sae.dead_after", "sae.encoder_scale", "optim.warmup", "shuffle.block_chunks")
"""Keys that `config.resolve` fills in from other values if they are null."""
FORMATS = {
    "fvu": ".4f",
    "l0": ".1f",
    "dead_fraction": ".2%",
    "ce_recovered": ".2%",
    "tokens": ",",
    "lr": ".2e",
}
"""Columns from summary.json, with their format in the printed table."""


def sweep_table(folder: Path) -> str:
    """Write sweep.csv and sweep.png into `folder`; return the table as text.

    Every run has a row; an unfinished one shows its status and what is known of it.

    Raises:
        ConfigError: the folder holds no run.
    """
    runs = runs_of(folder)
    if not runs:
        raise ConfigError(f"{folder} holds no runs; give the folder of a sweep, such as outputs/my_sweep")
    rows = rows_of(folder, runs)
    with (
        replacing(folder / SWEEP_TABLE) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [as_text(rows), str(folder / SWEEP_TABLE)]
    if any(row["fvu"] and row["l0"] for row in rows):
        plot(rows, folder / SWEEP_PLOT)
        lines.append(str(folder / SWEEP_PLOT))
    return "\n".join(lines)


def runs_of(folder: Path) -> dict[Path, Resolved]:
    """Read the configs of the runs in a folder; a grid counts as its dictionaries, in a folder or by itself.

    A dictionary whose folder is gone gets the config that its grid made for it.

    Raises:
        ConfigError: a config is damaged, or a folder lacks it.
    """
    own = folder / CONFIG
    if own.is_file():
        return _dictionaries(own) if varied(load_config(own)) else {}
    found: dict[Path, Resolved] = {}
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        found |= _dictionaries(path)
    return found


def _dictionaries(path: Path) -> dict[Path, Resolved]:
    """Read the configs of the dictionaries of one run."""
    cfg = load_config(path)
    if not varied(cfg):
        return {path.parent: cfg}
    folders = member_folders(cfg, path.parent)
    return {
        each: load_config(each / CONFIG) if each.is_dir() else member
        for each, member in zip(folders, members(cfg), strict=True)
    }


def differing(runs: dict[Path, Resolved]) -> list[str]:
    """List the full keys whose values differ among runs, without those of FILLED_IN that follow from others.

    Missing runs have unresolved values, and are not compared.
    """
    values = [flat(cfg) for folder, cfg in runs.items() if folder.is_dir()]
    keys = [
        key
        for key in (values[0] if values else ())
        if key.split(".")[0] not in UNSAID and len({str(each[key]) for each in values}) > 1
    ]
    chosen = [key for key in keys if key not in FILLED_IN]
    known = {str([each[key] for key in chosen]) for each in values}
    return [
        key
        for key in keys
        if key in chosen or len({str([each[one] for one in (*chosen, key)]) for each in values}) > len(known)
    ]


def rows_of(folder: Path, runs: dict[Path, Resolved]) -> list[dict[str, Any]]:
    """Make a row for each run: name, status, the values that differ among runs, results."""
    keys = list(dict.fromkeys([*ALWAYS, *differing(runs)]))
    rows = []
    for each, cfg in runs.items():
        summary, value = read_summary(each), flat(cfg)
        row: dict[str, Any] = {"run": each.relative_to(folder).as_posix(), "status": status(each, summary)}
        rows.append(row | {key: value[key] for key in keys} | {name: summary.get(name) for name in FORMATS})
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    """Return the rows as aligned columns; columns without any value are left out."""
    shown = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    lines = [[key.split(".")[-1] for key in shown]]
    for row in rows:
        lines.append(["-" if row[key] is None else f"{row[key]:{FORMATS.get(key, '')}}" for key in shown])
    return "\n".join(columns(lines))


@plain_settings()
def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot FVU against L0, a line for each width, and against width, a line for each k."""
    from matplotlib.figure import Figure

    # A logarithmic axis has no place for zeros.
    done = [row for row in rows if row["fvu"] and row["l0"]]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, across, along, label in (
        (panels[0], "l0", "sae.num_latents", "active latents per token (L0)"),
        (panels[1], "sae.num_latents", "sae.k", "latents"),
    ):
        for value in sorted({row[along] for row in done}):
            points = sorted((row[across], row["fvu"]) for row in done if row[along] == value)
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{along.split('.')[-1]} {value}")
        axes.set(xlabel=label, ylabel="fraction of variance unexplained", xscale="log", yscale="log")
        axes.set_xlim(*spanned([row[across] for row in done]))
        axes.set_ylim(*spanned([row["fvu"] for row in done]))
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(path, dpi=120)
