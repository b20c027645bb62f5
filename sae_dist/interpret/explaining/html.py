"""An explanation as HTML that needs nothing else: no script, nothing fetched, for light and dark screens."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.core.template import rendered
from sae_dist.interpret.explaining.view import HEADINGS, headline, latent_views, number, summary, token_views

if TYPE_CHECKING:
    from sae_dist.interpret.explaining.explanation import Explanation

DARKEST = 0.75


def fragment(e: "Explanation") -> str:
    """Return what a notebook shows."""
    return _rendered(e, whole=False)


def page(e: "Explanation") -> str:
    """Return a page of its own."""
    return _rendered(e, whole=True)


def _rendered(e: "Explanation", whole: bool) -> str:
    """Render the template of an explanation."""
    views = token_views(e)
    values: dict[str, Any] = {
        "whole": whole,
        "headline": headline(e),
        "summary": summary(e),
        "headings": HEADINGS,
        "latents": latent_views(e),
        "rows": [
            ("what fired, by code times surprise", _shades(views, [each.score for each in views])),
            ("what is not explained (FVU)", _shades(views, [each.fvu for each in views], 1.0)),
        ],
    }
    return rendered(Path(__file__).with_name("explanation.html"), values, {"number": number})


def _shades(views: list[Any], values: list[float], most: float | None = None) -> list[tuple[Any, str]]:
    """Return every token with how dark it is; special ones are not shaded."""
    plain = [
        0.0 if view.flag == "special" or not math.isfinite(v) else v
        for view, v in zip(views, values, strict=True)
    ]
    most = most or max(plain, default=0.0) or 1.0
    return [
        (view, f"{DARKEST * min(max(value / most, 0.0), 1.0):.3f}")
        for view, value in zip(views, plain, strict=True)
    ]
