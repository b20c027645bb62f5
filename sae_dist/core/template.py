"""Pages from templates of Jinja2, which escapes all that is inserted; control characters are written out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_dist.core.text import visible


def rendered(
    template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """Render a template, which may include others of its folder; a missing value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template.name).render(values)


def _visible(value: Any) -> Any:
    """Return what is inserted, text without signs that a browser obeys; markup stays markup."""
    return type(value)(visible(value)) if isinstance(value, str) else value
