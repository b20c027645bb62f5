"""A graph as the JSON that its page reads: columns of nodes, edges by target, words made harmless.

Letters: N nodes, P edges.
"""

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_dist.graph.known import Excerpt, Known, label_of
from sae_dist.graph.words import ERROR, LATENT, LOGIT, TOKEN, numbers_of_layers, target_texts, token_text

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph

KINDS = (TOKEN, LATENT, ERROR, LOGIT)
"""In the order of the page's own numbers."""
MOST_EDGES = 400_000
"""Edges that a page holds: 5 MB."""
SHOWN = 400
"""Nodes that a page shows at first."""
SHADES = 10
LABEL = 160
"""Characters of a latent's words."""


def page_data(graph: "Graph", known: Mapping[tuple[int, int], Known]) -> tuple[dict[str, Any], int]:
    """Return what the page reads, and how many edges it leaves out.

    Args:
        known: what atlases say, by layer of the set and latent.
    """
    edges, left_out = _edges(graph)
    texts = target_texts(graph)
    nodes: dict[str, list[Any]] = {
        "id": [node.id for node in graph.nodes],
        "kind": [KINDS.index(node.kind) for node in graph.nodes],
        "layer": [node.layer for node in graph.nodes],
        "position": [node.position for node in graph.nodes],
        "latent": [-1 if node.latent is None else node.latent for node in graph.nodes],
        "activation": [_number(node.activation) for node in graph.nodes],
        "value": [_number(each) for each in graph.values.tolist()],
        "constant": [_number(each) for each in graph.constants.tolist()],
        "share": [_number(node.influence) or 0.0 for node in graph.nodes],
        "probability": [_number(node.probability) for node in graph.nodes],
        "total": [[_number(each) for each in row] for row in graph.total.tolist()],
        "words": ["" for _ in graph.nodes],
    }
    for place, node in enumerate(graph.nodes):
        if node.kind == LATENT:
            nodes["words"][place] = _label(label_of(known.get((node.layer, node.latent or 0))))
        elif node.kind == LOGIT:
            nodes["words"][place] = token_text(texts.get(node.token or 0, f"token {node.token}"))
    there = {(node.layer, node.latent) for node in graph.nodes if node.kind == LATENT}
    return {
        "tokens": [token_text(each) for each in graph.tokens],
        "layers": list(numbers_of_layers(graph)),
        "bare": [each.hook is None for each in graph.layers],
        "nodes": nodes,
        "edges": edges,
        "known": {f"{key[0]}_{key[1]}": _known(each) for key, each in known.items() if key in there},
        "whole": _number(graph.influence_sum),
        "shown": min(SHOWN, sum(node.kind not in (TOKEN, LOGIT) for node in graph.nodes) or 1),
    }, left_out


def embedded(content: Mapping[str, Any]) -> str:
    """Return JSON that can stand within a page: no sign of it ends a script or begins a comment."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _edges(graph: "Graph") -> tuple[dict[str, str], int]:
    """Return edges sorted by target, as texts of their bytes; and how many are left out.

    Those that stay carry most to the logits: the share of their target's inputs, times its influence.
    """
    row_P, column_P = np.asarray(graph.rows, np.int64), np.asarray(graph.columns, np.int64)
    weight_P = np.asarray(graph.weights, np.float32)
    count, number = len(graph.nodes), len(row_P)
    if number > MOST_EDGES:
        size_P = np.abs(weight_P).astype(np.float64)
        total_N = np.bincount(row_P, size_P, count)
        influence_N = np.array([node.influence for node in graph.nodes], np.float64)
        carried_P = size_P * (influence_N / np.maximum(total_N, 1e-300))[row_P]
        kept_P = np.sort(np.argsort(-carried_P, kind="stable")[:MOST_EDGES])
        row_P, column_P, weight_P = row_P[kept_P], column_P[kept_P], weight_P[kept_P]
    order_P = np.lexsort((column_P, row_P))
    start_N = np.concatenate([[0], np.cumsum(np.bincount(row_P, minlength=count))])
    found = {
        "start": _bytes(start_N, "<i4"),
        "source": _bytes(column_P[order_P], "<i4"),
        "weight": _bytes(weight_P[order_P], "<f4"),
    }
    return found, number - len(row_P)


def _bytes(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _number(value: float | None) -> float | None:
    """Return a number of a few digits; None: there is none."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def _label(words: str) -> str:
    return token_text(words)[:LABEL] if words else ""


def _known(own: Known) -> dict[str, Any]:
    return {
        "state": own.state,
        "rate": _number(own.rate),
        "most": _number(own.most),
        "fires": [token_text(each) for each in own.fires],
        "up": [[token_text(token), _number(by)] for token, by in own.up],
        "down": [[token_text(token), _number(by)] for token, by in own.down],
        "excerpts": [_excerpt(each, own.most or 0.0) for each in own.excerpts],
    }


def _excerpt(each: Excerpt, most: float) -> list[Any]:
    levels = [
        0 if not code > 0 or not most > 0 else max(1, min(SHADES, int(np.ceil(SHADES * code / most))))
        for code in each.codes
    ]
    return [[token_text(token) for token in each.tokens], levels, each.own]
