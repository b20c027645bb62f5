"""An explanation as lines for a terminal."""

from typing import TYPE_CHECKING

from sae_dist.core.text import columns
from sae_dist.interpret.explaining.view import (
    HEADINGS,
    headline,
    latent_views,
    number,
    summary,
    token_views,
)

if TYPE_CHECKING:
    from sae_dist.interpret.explaining.explanation import Explanation


def lines(e: "Explanation") -> list[str]:
    """Return the lines: what was read, every token, and the most noteworthy latents."""
    rows = [["position", "id", "token", "", "not explained", "latents, with codes"]]
    for each in token_views(e):
        place = [str(each.position), str(each.token_id), f"|{each.shown}|", each.flag]
        rows.append([*place, number(each.fvu), each.latents])
    table = [["", *HEADINGS, "strongest on"]]
    for view in latent_views(e):
        where = f"{view.before}[{view.strongest}]{view.after}"
        table.append(["*" if view.unusual else "", *view.cells, where])
    found = [*headline(e), "", *columns(rows, None), "", summary(e)]
    if len(table) > 1:
        found += columns(table, None)
    if any(row[0] for row in table):
        found.append("* unusual for a text")
    return found
