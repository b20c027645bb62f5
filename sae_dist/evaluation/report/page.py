"""The report of a run of one dictionary, as one HTML page."""

import base64
from pathlib import Path
from typing import Any

from sae_dist.config.trust import NOTHING, Granted
from sae_dist.core.run_folder import CHECKPOINTS, EXPORT, PLOTS
from sae_dist.evaluation.report.cards import parts
from sae_dist.evaluation.report.charted import latents_of
from sae_dist.evaluation.report.figures import curves, density
from sae_dist.evaluation.report.files import RunFiles, read_run
from sae_dist.evaluation.report.latents import Latents
from sae_dist.evaluation.report.numbers import dictionary, entries, headline, of_start, results, speed, what
from sae_dist.evaluation.report.warn import warnings
from sae_dist.evaluation.report.write import write_page
from sae_dist.export.saelens import SAE_CONFIG

TEMPLATE = "page.html"
PNG = b"\x89PNG\r\n"
PICTURES = {"recovery.png": "True features beside what was learnt"}


def report_run(folder: Path, granted: Granted = NOTHING) -> Path:
    """Write `folder`/report.html from the run's files and its export; return its path.

    Raises:
        ConfigError: the folder is not a run's, is a grid's, or has no export.
        DataError: there are no held-out activations.
    """
    run = read_run(folder, granted)
    return write_page(folder, TEMPLATE, **content(run, latents_of(run.cfg, folder)))


def needs_export(folder: Path) -> bool:
    """Return whether the newest checkpoint must be exported first: the run is unfinished, or has no export.

    Raises:
        ConfigError: see `read_run`.
    """
    run = read_run(folder)
    exported = (folder / EXPORT / SAE_CONFIG).is_file()
    return not exported or not run.is_done and (folder / CHECKPOINTS).is_dir()


def content(run: RunFiles, latents: Latents) -> dict[str, Any]:
    """Collect the values that the template shows."""
    held_out = {
        column: run.summary[key]
        for column, key in (("loss/fvu", "fvu"), ("sparsity/l0", "l0"))
        if run.summary.get(key) is not None
    }
    rate_F = latents.rate_F
    return {
        "name": run.cfg.name or run.folder.name,
        "status": run.status,
        "step": latents.sae.metadata.get("sae_dist_step"),
        "what": [dictionary(run.cfg, latents.sae), *what(run)],
        "warnings": warnings(run, rate_F),
        "headline": headline(run.summary),
        "curves": curves(run.rows, held_out),
        "results": results(run.summary),
        "density": density(rate_F, latents.groups) if rate_F is not None else None,
        "pictures": pictures(run.folder),
        "speed": speed(run),
        "evaluation": entries(run.evaluation) if run.evaluation is not None else None,
        "latents": latents,
        "parts": parts(latents),
        "config": run.config_text,
        "provenance": entries(of_start(run.provenance)),
        "changed": bool(run.provenance.get("diff")),
    }


def pictures(folder: Path) -> list[tuple[str, str]]:
    """Return title and data URL of each plot of the evaluation that the page does not draw itself."""
    found = []
    for name, title in PICTURES.items():
        path = folder / PLOTS / name
        # A link in a folder from elsewhere would show another file of this machine.
        inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
        if inside and (content := path.read_bytes()).startswith(PNG):
            found.append((title, "data:image/png;base64," + base64.b64encode(content).decode()))
    return found
