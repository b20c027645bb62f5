"""The page of a graph: one file that needs nothing else, with the verdict of its check first."""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sae_dist.core.files import write_text
from sae_dist.core.template import rendered
from sae_dist.core.text import visible
from sae_dist.graph.known import Known
from sae_dist.graph.page.data import embedded, page_data
from sae_dist.graph.page.view import headline, numbers_of, unchecked, words_of_checks
from sae_dist.graph.words import name_of

if TYPE_CHECKING:
    from sae_dist.graph.check.verdict import Verdict
    from sae_dist.graph.graph import Graph

HERE = Path(__file__).parent
SCRIPTS = ("data", "state", "layout", "draw", "panel", "groups", "main")
NODE_ID = re.compile(r"\b(?:f_\d+_\d+_\d+|e_\d+_\d+|t_\d+|l_\d+)\b")
LINES = 3
"""Lines of a verdict that stand open; what follows is folded away with the tables."""


def write_page(
    path: Path,
    graph: "Graph",
    verdict: "Verdict | None" = None,
    known: Mapping[tuple[int, int], Known] | None = None,
) -> Path:
    """Write the page of a graph, complete or absent; see `page`. Return its path."""
    write_text(path, page(graph, verdict, known))
    return path


def page(
    graph: "Graph",
    verdict: "Verdict | None" = None,
    known: Mapping[tuple[int, int], Known] | None = None,
) -> str:
    """Return the page of a graph.

    Nothing is fetched, and only the page's own script runs: its hash is in the page's policy.

    Args:
        verdict: of the interventions on the real model; None: the page says that there were none.
        known: what atlases say of latents, as `known_of` finds it.
    """
    content, left_out = page_data(graph, known or {})
    style = (HERE / "graph.css").read_text(encoding="utf-8")
    script = _script()
    values: dict[str, Any] = {
        "policy": policy(style, script),
        "title": visible(graph.prompt, "").strip()[:80] or "an empty prompt",
        "style": Markup(style),
        "script": Markup(script),
        "data": Markup(embedded(content)),
        "headline": headline(graph),
        "numbers": numbers_of(graph),
        "verdict": verdict or unchecked(),
        "checks": words_of_checks(graph),
        "model": name_of(graph.model),
        "set_name": name_of(graph.set_name),
        "left_out": left_out,
        "bare": [
            f"L{n}" for n, each in zip(content["layers"], graph.layers, strict=True) if each.hook is None
        ],
        "lines": LINES,
        "pieces": lambda cell: pieces(cell, graph),
    }
    return rendered(HERE / "graph.html", values)


def pieces(cell: str, graph: "Graph") -> list[tuple[str, bool]]:
    """Return the parts of a table's cell in order: text, and whether it is the id of a node of the graph."""
    found, end = [], 0
    for match in NODE_ID.finditer(cell):
        if match[0] in graph.index:
            found += [(cell[end : match.start()], False), (match[0], True)]
            end = match.end()
    return [each for each in [*found, (cell[end:], False)] if each[0]]


def policy(style: str, script: str) -> str:
    """Return the content policy of a page: this style and this script, and nothing else."""
    allowed = [
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'"
        for each in (style, script)
    ]
    return (
        f"default-src 'none'; style-src {allowed[0]}; script-src {allowed[1]}; "
        "base-uri 'none'; form-action 'none'"
    )


def _script() -> str:
    parts = [(HERE / "parts" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"
