"""A graph as a notebook shows it: numbers and the most influential nodes, without a script or a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from sae_dist.core.template import rendered
from sae_dist.graph.page.view import headline, number, numbers_of, percent, unchecked
from sae_dist.graph.words import LATENT, name_of, numbers_of_layers, token_text

if TYPE_CHECKING:
    from sae_dist.graph.check.verdict import Verdict
    from sae_dist.graph.graph import Graph

ROWS = 15


def fragment(graph: "Graph", verdict: "Verdict | None" = None) -> str:
    """Return the HTML that a notebook shows of a graph.

    Args:
        verdict: of the interventions on the real model; None: that there were none is what it says.
    """
    numbers = numbers_of_layers(graph)
    latents = sorted((node for node in graph.nodes if node.kind == LATENT), key=lambda node: -node.influence)
    rows = [
        (
            node.id,
            str(numbers[node.layer]),
            str(node.latent),
            f"{node.position} {token_text(graph.tokens[node.position])}",
            number(node.activation),
            percent(node.influence),
        )
        for node in latents[:ROWS]
    ]
    values = {
        "model": name_of(graph.model),
        "set_name": name_of(graph.set_name),
        "headline": headline(graph),
        "verdict": verdict or unchecked(),
        "numbers": numbers_of(graph),
        "rows": rows,
        "latents": len(latents),
    }
    return rendered(Path(__file__).with_name("notebook.html"), values)
