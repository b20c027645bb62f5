"""The settings under which figures are drawn: those of the library alone.

matplotlib takes a file `matplotlibrc` of the working folder before a person's own. That folder may be
somebody else's, and settings run programs: `text.usetex` runs LaTeX with a preamble that the file gives.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

OUTSIDE = ("backend", "backend_fallback", "interactive", "toolbar")
"""What belongs to windows, which no figure here has, and to the notebook around."""


@contextmanager
def plain_settings(changes: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Draw with matplotlib's own settings in a `with` block, or in a function that this decorates.

    Args:
        changes: others, by their names.
    """
    import matplotlib

    own: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in OUTSIDE}
    own |= changes
    with matplotlib.rc_context(own):
        yield
