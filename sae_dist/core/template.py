"""Pages from templates of Jinja2, which escapes all that is inserted; control characters are written out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.core.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment

Filters = Mapping[str, Callable[..., Any]]


class Templates:
    """The templates of a folder, which may include each other; each is read once.

    A missing value is an error.
    """

    def __init__(self, folder: Path, filters: Filters | None = None):
        self._environment = _environment(folder, filters)

    def rendered(self, name: str, values: Mapping[str, Any]) -> str:
        """Render a template; safe from several threads."""
        return self._environment.get_template(name).render(values)


def rendered(template: Path, values: Mapping[str, Any], filters: Filters | None = None) -> str:
    """Render a template, which may include others of its folder; a missing value is an error."""
    return _environment(template.parent, filters).get_template(template.name).render(values)


def _environment(folder: Path, filters: Filters | None) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(filters or {})
    return environment


def _visible(value: Any) -> Any:
    """Return what is inserted, text without signs that a browser obeys; markup stays markup."""
    return type(value)(visible(value)) if isinstance(value, str) else value
