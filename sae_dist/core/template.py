"""Pages from templates of Jinja2, which escapes all that is inserted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def rendered(
    template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """Render a template, which may include others of its folder; a missing value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template.name).render(values)
