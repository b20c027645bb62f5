"""Rendering of a template in this folder as one HTML file. Jinja2 escapes all that is inserted."""

import os
from pathlib import Path
from shlex import quote
from typing import Any

PAGE = "report.html"


def write_page(folder: Path, template: str, **values: Any) -> Path:
    """Write `folder`/report.html, complete or not at all; return its path."""
    path = folder / PAGE
    temporary = folder / f".{PAGE}.{os.getpid()}"
    temporary.write_text(rendered(template, folder=quote(str(folder)), **values), encoding="utf-8")
    os.replace(temporary, path)
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
