"""An attribution as HTML that needs nothing else: no script, nothing fetched, for light and dark screens."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.core.template import rendered
from sae_dist.interpret.attribute.view import (
    FOOT,
    HEADINGS,
    MARK,
    code_views,
    place_line,
    token_views,
    verdict,
)

if TYPE_CHECKING:
    from sae_dist.interpret.attribute.attribution import Attribution

DARKEST = 0.75


def fragment(a: "Attribution") -> str:
    """Return what a notebook shows."""
    return _rendered(a, whole=False)


def page(a: "Attribution") -> str:
    """Return a page of its own."""
    return _rendered(a, whole=True)


def _rendered(a: "Attribution", whole: bool) -> str:
    views = token_views(a)
    most = max((abs(each) for view in views for each in (view.effect, view.error)), default=0.0) or 1.0

    def shaded(effects: list[float]) -> list[tuple[Any, str, str]]:
        shades = [f"{DARKEST * abs(each) / most:.3f}" for each in effects]
        signs = ["against" if each < 0 else "for" for each in effects]
        return list(zip(views, signs, shades, strict=True))

    values: dict[str, Any] = {
        "whole": whole,
        "verdict": verdict(a),
        "place": place_line(a),
        "headings": HEADINGS,
        "codes": code_views(a),
        "foot": FOOT,
        "mark": MARK,
        "rows": [
            ("what codes do, by gradient times code", shaded([each.effect for each in views])),
            ("what the error does, on the same scale", shaded([each.error for each in views])),
        ],
    }
    return rendered(Path(__file__).with_name("attribution.html"), values)
