"""The nodes of a graph in words: layers as the model numbers them, labels, shares of influence."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_dist.core.text import visible

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph

LATENT, ERROR, TOKEN, LOGIT = "latent", "error", "token", "logit"
NUMBERED = re.compile(r"(?:^|\.)(\d+)(?:[.:]|$)")
SPACES = re.compile(" {3,}")
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST = 200
"""Characters of a token that are shown."""


def layer_numbers(targets: Sequence[str]) -> tuple[int, ...]:
    """Return the number that each place of a graph has in the model.

    Args:
        targets: hooks of what is reconstructed there, in the model's order.

    Returns:
        The numbers that the hooks name; where one names none, or two the same one: 0, 1, ...
    """
    found = [NUMBERED.search(each) for each in targets]
    numbers = [int(each[1]) for each in found if each]
    if len(numbers) < len(found) or any(b <= a for a, b in zip(numbers, numbers[1:], strict=False)):
        return tuple(range(len(found)))
    return tuple(numbers)


def numbers_of_layers(graph: "Graph") -> tuple[int, ...]:
    """Return the number that each place of a graph has in the model; see `layer_numbers`."""
    return layer_numbers([each.target for each in graph.layers])


def without_transcoder(graph: "Graph") -> str:
    """Return which layers have no transcoder, so that all they add is an error; empty: each has one."""
    numbers = numbers_of_layers(graph)
    bare = [str(n) for n, each in zip(numbers, graph.layers, strict=True) if each.hook is None]
    return f"no transcoder for layer{'s' * (len(bare) > 1)} {', '.join(bare)}" if bare else ""


def cumulative(graph: "Graph") -> list[float | None]:
    """Return, for each node, the share of all nodes' influence that the greatest down to it have.

    The whole is the influence of all nodes before pruning. Nodes whose value is at most p are those that
    pruning at p leaves: circuit-tracer's and Neuronpedia's `influence`. None: a logit.
    """
    own = [None if node.kind == LOGIT else max(node.influence, 0.0) for node in graph.nodes]
    order = sorted(
        (place for place, each in enumerate(own) if each is not None), key=lambda n: -(own[n] or 0)
    )
    whole = max(graph.influence_sum, sum(each or 0.0 for each in own)) or 1.0
    found: list[float | None] = [None] * len(own)
    so_far = 0.0
    for place in order:
        so_far += own[place] or 0.0
        found[place] = min(so_far / whole, 1.0)
    return found


def name_of(where: str) -> str:
    """Return the name of a model or set; of a path on this machine its last part, for others to read."""
    path = Path(where)
    return path.name if path.name and (path.is_absolute() or where.startswith((".", "~"))) else where


def token_text(text: str) -> str:
    """Return a token's text in one line: control characters written out, many spaces counted, none as ∅."""
    shown = SPACES.sub(lambda run: "␣" + str(len(run[0])).translate(RAISED), visible(text, "")) or "∅"
    if shown.isspace():
        shown = "␣" * len(shown)
    return shown if len(shown) <= MOST else shown[:MOST] + "…"


def target_texts(graph: "Graph") -> dict[int, str]:
    """Return the text of each token whose logit is a target, by its id."""
    return {
        node.token: text
        for node, text in zip(graph.logits, graph.targets, strict=True)
        if node.token is not None
    }
