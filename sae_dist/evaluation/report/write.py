"""Rendering of a template in this folder as one HTML file. Jinja2 escapes all that is inserted."""

from pathlib import Path
from shlex import quote
from typing import Any

from sae_dist.core.files import write_text
from sae_dist.core.run_folder import REPORT


def write_page(folder: Path, template: str, **values: Any) -> Path:
    """Write `folder`/report.html, complete or not at all; return its path."""
    path = folder / REPORT
    write_text(path, rendered(template, folder=quote(str(folder)), **values))
    return path


def rendered(template: str, **values: Any) -> str:
    """Render a template; a missing value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
