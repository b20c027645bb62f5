"""Rendering of a template in this folder as one HTML file."""

from pathlib import Path
from typing import Any

from sae_dist.core.files import write_text
from sae_dist.core.run_folder import REPORT
from sae_dist.core.template import rendered as page
from sae_dist.core.text import quoted


def write_page(folder: Path, template: str, **values: Any) -> Path:
    """Write `folder`/report.html, complete or not at all; return its path."""
    path = folder / REPORT
    write_text(path, page(Path(__file__).with_name(template), {"folder": quoted(folder), **values}))
    return path
