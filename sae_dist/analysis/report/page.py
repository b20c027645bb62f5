"""A run as one HTML page that needs nothing else. Jinja2 escapes all that is put into it."""

import base64
import os
from pathlib import Path

from sae_dist.analysis.report.cards import parts
from sae_dist.analysis.report.figures import curves, density
from sae_dist.analysis.report.files import RunFiles, read_run
from sae_dist.analysis.report.latents import Latents, read_latents
from sae_dist.analysis.report.numbers import entries, headline, results, speed, what
from sae_dist.analysis.report.warn import warnings

PAGE = "report.html"
TEMPLATE = "page.html"
PICTURES = {"recovery.png": "True features beside what was learnt"}


def report_run(folder: Path) -> Path:
    """Write `folder`/report.html from the run's files and its export; returns its path.

    Raises:
        ConfigError: the folder is no run, is a grid's, or has no export.
        DataError: there are no held-out activations.
    """
    run = read_run(folder)
    latents = read_latents(run.cfg, folder)
    path = folder / PAGE
    temporary = folder / f".{PAGE}.{os.getpid()}"
    temporary.write_text(render(run, latents), encoding="utf-8")
    os.replace(temporary, path)
    return path


def needs_export(folder: Path) -> bool:
    """Whether a report is to be made of the newest checkpoint: the run is unfinished, or has no export.

    Raises:
        ConfigError: see `read_run`.
    """
    run = read_run(folder)
    exported = (folder / "export" / "cfg.json").is_file()
    return not exported or not run.is_done and (folder / "checkpoints").is_dir()


def render(run: RunFiles, latents: Latents) -> str:
    """The page's text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    held_out = {
        column: run.summary[key]
        for column, key in (("loss/fvu", "fvu"), ("sparsity/l0", "l0"))
        if run.summary.get(key) is not None
    }
    rate_F = latents.rate_F
    return environment.get_template(TEMPLATE).render(
        name=run.cfg.name or run.folder.name,
        folder=str(run.folder),
        status=run.status,
        step=latents.sae.metadata.get("sae_dist_step"),
        what=what(run, latents.sae),
        warnings=warnings(run, rate_F),
        headline=headline(run.summary),
        curves=curves(run.rows, held_out),
        results=results(run.summary),
        density=density(rate_F, latents.groups) if rate_F is not None else None,
        pictures=pictures(run.folder),
        speed=speed(run),
        evaluation=entries(run.evaluation) if run.evaluation is not None else None,
        latents=latents,
        parts=parts(latents),
        config=run.config_text,
        provenance=entries({k: v for k, v in run.provenance.items() if k not in ("diff", "resumed")}),
        changed=bool(run.provenance.get("diff")),
    )


def pictures(folder: Path) -> list[tuple[str, str]]:
    """Title and data address of what the evaluation drew and the page does not draw itself."""
    found = []
    for name, title in PICTURES.items():
        path = folder / "plots" / name
        if path.is_file():
            found.append((title, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()))
    return found
