"""A grid or a sweep as one HTML page: its dictionaries in one table, with links to their own pages."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae_dist.config.kinds import SELECTED
from sae_dist.config.run import Resolved, flat
from sae_dist.core.run_folder import CONFIG, FINISHED, REPORT, SWEEP_TABLE, read_summary
from sae_dist.core.text import quoted
from sae_dist.evaluation.report.compare import cost, deep, merged, shared, side_by_side, speeds, starts
from sae_dist.evaluation.report.lines import NUMBERED, frontier, overlays
from sae_dist.evaluation.report.members import Member, read_members
from sae_dist.evaluation.report.numbers import (
    FORMS,
    Number,
    entries,
    kind,
    of_start,
    plain,
    results,
    shown,
    what,
)
from sae_dist.evaluation.report.write import write_page
from sae_dist.evaluation.sweep import ALWAYS, differing

TEMPLATE = "many.html"
RESULTS = (
    ("FVU", "fvu"),
    ("L0", "l0"),
    ("dead", "dead_fraction"),
    ("CE recovered", "ce_recovered"),
    ("lr", "lr"),
)
"""Columns of the main table, after the values in which dictionaries differ."""
OWN = ("name", "output", "private", "resume", "grid")
"""Keys of a config that do not affect what is trained."""


@dataclass(frozen=True)
class Told:
    """A piece of advice, and findings with the dictionaries they are about (none: all together)."""

    advice: str
    found: list[tuple[str, list[Member]]]


def report_many(folder: Path, runs: dict[Path, Resolved]) -> Path:
    """Write `folder`/report.html; return its path.

    Args:
        runs: see `evaluation.sweep.runs_of`; not empty.

    Raises:
        ConfigError: a file is damaged, or the folders of a grid's dictionaries are all gone.
    """
    is_grid = (folder / CONFIG).is_file()
    runs = runs if is_grid else by_value(runs)
    members = read_members(folder, runs)
    addresses = [address(folder, each.run.folder / REPORT) for each in members]
    alone = [each for each, its in zip(members, addresses, strict=True) if its is None and each.run.rows]
    apart = differing(runs)
    keys = list(dict.fromkeys([*ALWAYS, *(key for key in apart if key != "optim.lr")]))
    names = [key.split(".")[-1] for key in keys]
    started = [each.run.provenance for each in members if each.run.provenance]
    return write_page(
        folder,
        TEMPLATE,
        name=folder.resolve().name,
        is_grid=is_grid,
        members=members,
        ended=sum(each.run.status == FINISHED for each in members),
        headline=headline(members),
        told=[*not_listed(folder, runs), *told(members)],
        about=about(members, apart),
        heads=[key if names.count(name) > 1 else name for key, name in zip(keys, names, strict=True)],
        cells=[cells(each, keys) for each in members],
        addresses=addresses,
        alone=[quoted(each.run.folder) for each in alone],
        done=[quoted(each.run.folder) for each in members if each.run.is_done],
        result_heads=[label for label, _ in RESULTS],
        series=list({each.line.series: each.line for each in members}.values()),
        frontier=frontier(members),
        overlays=overlays(members),
        numbered=len(members) <= NUMBERED,
        results=side_by_side([results(each.run.summary) for each in members]),
        seeds=seeds(folder, members),
        why_no_seeds=why_no_seeds(members, keys),
        cost=cost(members),
        speeds=speeds(members),
        evaluations=[each for each in members if each.run.evaluation is not None],
        deep=deep(members),
        config=entries(nested(common([flat(each.run.cfg) for each in members if each.run.config_text]))),
        provenance=entries(of_start(common(started))),
        changed=any(each.get("diff") for each in started),
    )


def by_value(runs: dict[Path, Resolved]) -> dict[Path, Resolved]:
    """Sort runs by the values in which they differ, rather than by their names."""
    keys = differing(runs)

    def place(folder: Path) -> list[tuple[float, str]]:
        values = flat(runs[folder])
        return [(v, "") if isinstance(v, int | float) else (0.0, str(v)) for v in map(values.get, keys)]

    return {folder: runs[folder] for folder in sorted(runs, key=place)}


def headline(members: list[Member]) -> list[Number]:
    """Return the few numbers that matter most."""
    found = [Number("dictionaries", str(len(members)))]
    for label, key, best in (
        ("lowest FVU, held out", "fvu", min),
        ("highest CE recovered", "ce_recovered", max),
    ):
        known = {
            each.name: each.run.summary[key] for each in members if each.run.summary.get(key) is not None
        }
        if known:
            name = best(known, key=lambda name: known[name])
            found.append(Number(f"{label}: {name}", shown(known[name], FORMS[key])))
    tokens = [each.run.tokens for each in members]
    each_of = "tokens for each" if min(tokens) == max(tokens) else "tokens for the one trained longest"
    return [*found, Number(each_of, shown(max(tokens), "count"))]


def told(members: list[Member]) -> list[Told]:
    """Merge the warnings of all: each piece of advice once, with what was found of which dictionaries."""
    found: dict[str, dict[str, list[Member]]] = {}
    advice_of: dict[str, str] = {}
    orders = []
    for each in members:
        # The same command with another folder counts as the same advice.
        abouts = [one.advice.replace(quoted(each.run.folder), "RUN") for one in each.warnings]
        orders.append(abouts)
        for about, warning in zip(abouts, each.warnings, strict=True):
            advice_of[about] = about if about in advice_of else warning.advice
            found.setdefault(about, {}).setdefault(warning.found, []).append(each)
    return [Told(advice_of[about], list(found[about].items())) for about in merged(orders)]


def not_listed(folder: Path, runs: dict[Path, Resolved]) -> list[Told]:
    """Report runs that the sweep's table lists and whose folders are gone."""
    if not (folder / SWEEP_TABLE).is_file():
        return []
    with open(folder / SWEEP_TABLE, newline="", encoding="utf-8") as file:
        listed = [row.get("run") or "" for row in csv.DictReader(file)]
    here = {each.relative_to(folder).as_posix() for each in runs}
    gone = [name for name in listed if name not in here]
    if not gone:
        return []
    found = f"{SWEEP_TABLE} lists {len(gone)} whose folders are gone: {', '.join(gone)}."
    return [Told(f"sae-dist sweep-table {quoted(folder)} writes it anew.", [(found, [])])]


def about(members: list[Member], apart: list[str]) -> list[Number]:
    """Describe what was trained, as far as it is the same for all; `apart`: keys in which they differ."""
    kinds = " and ".join(dict.fromkeys(kind(each.run.cfg) + "s" for each in members))
    there = [each.run for each in members if each.run.config_text]
    first = min((run.provenance.get("time") or "" for run in there), default="")
    dated = [replace(run, provenance=run.provenance | {"time": first}) for run in there]
    wanted = {f"{plain(each.run.cfg.train_tokens)} tokens for each" for each in members}
    differ = "that differ in " + ", ".join(apart) if apart else ""
    return [
        Number("Dictionaries", f"{len(members)} {kinds}", differ),
        *(
            replace(number, value=min(wanted)) if number.label == "Training" and len(wanted) == 1 else number
            for number in shared([what(run) for run in dated])
        ),
    ]


def cells(member: Member, keys: list[str]) -> list[str]:
    """Return a dictionary's cells in the main table: values that differ, results, tokens."""
    values, summary, cfg = flat(member.run.cfg), member.run.summary, member.run.cfg
    if cfg.sae.kind not in SELECTED:
        values["sae.k"] = None
    found = ["–" if values[key] is None else str(values[key]) for key in keys]
    known = {"lr": cfg.optim.lr} | {key: value for key, value in summary.items() if value is not None}
    for _, key in RESULTS:
        found.append("–" if known.get(key) is None else shown(known[key], FORMS[key]))
    tokens, wanted = member.run.tokens, cfg.train_tokens
    if member.run.status == "missing":
        return [*found, "–"]
    return [*found, f"{tokens:,}" if tokens == wanted else f"{tokens:,} of {plain(wanted)}"]


def address(folder: Path, path: Path) -> str | None:
    """Return a file's link from the page; None: there is no file. No name can make it lead elsewhere."""
    return "./" + quote(path.relative_to(folder).as_posix()) if path.is_file() else None


def seeds(folder: Path, members: list[Member]) -> list[dict[str, Any]]:
    """Return the results of `evaluation.seeds` for each pair, with the page's numbers and the file's link."""
    number_of = {each.run.folder: each for each in members}
    found = []
    for started in starts(members):
        for pair in read_summary(started).get("seeds", []):
            first, second = (number_of.get(started / pair[key]) for key in ("first", "second"))
            if first and second:
                quarters = [f"{share:.0%}" for share in pair["quarters"]]
                file = address(folder, started / pair["file"])
                found.append(
                    {"first": first, "second": second, "matched": f"{pair['matched']:.1%}"}
                    | {"above": pair["above"], "quarters": quarters, "file": file}
                )
    return found


def why_no_seeds(members: list[Member], keys: list[str]) -> str | None:
    """Explain why seeds are not compared, if they differ."""
    if not {"seed", "sae.seed"} & set(keys):
        return None
    if any(each.run.started != each.run.folder for each in members):
        return "seeds are compared when the grid has ended"
    return "the seeds of a grid are compared (grid.seed), not those of runs of their own"


def common(contents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entries that are the same in all."""
    first = contents[0] if contents else {}
    return {key: value for key, value in first.items() if all(key in c and c[key] == value for c in contents)}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Turn `{"sae.k": 32}` into `{"sae": {"k": 32}}`, without keys of OWN."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if key.split(".")[0] not in OWN:
            node = found
            for part in section.split(".") if section else ():
                node = node.setdefault(part, {})
            node[name] = value
    return found
