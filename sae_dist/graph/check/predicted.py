"""The predictions of a graph: the effect of changing a node, along all paths, and the strongest paths.

Letters: T nodes of the graph; P edges; C changes of nodes.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph, Node

Floats = NDArray[np.float64]
LONGEST_EDGES = 50_000
"""So many edges, the strongest ones, are searched for paths."""


@dataclass(frozen=True)
class Path:
    """A path through a graph, from a latent over other latents to a logit.

    Attributes:
        nodes: numbers of nodes, the source first.
        effect: what of the source reaches the logit along this path alone.
    """

    nodes: tuple[int, ...]
    effect: float


class Predicted:
    """The linear map that a graph is: every node's value is a sum over the nodes that lead to it.

    A latent's value is its code, a logit's itself; errors and tokens are 1, and 0 when they are cut.

    Attributes:
        graph: whose numbers of nodes are used.
        row_P, column_P, weight_P: edges; a weight is per unit of the source's value.
    """

    def __init__(self, graph: "Graph"):
        self.graph = graph
        self.value_T = np.array([value_of(node) for node in graph.nodes], dtype=np.float64)
        self.row_P, self.column_P = _numbers(graph.rows), _numbers(graph.columns)
        at_clean_P = np.asarray(graph.weights, dtype=np.float64)
        source_P = self.value_T[self.column_P]
        self.weight_P = np.divide(at_clean_P, source_P, out=np.zeros_like(at_clean_P), where=source_P != 0)

    @cached_property
    def place(self) -> dict[str, int]:
        """The number of each node by its id."""
        return {node.id: number for number, node in enumerate(self.graph.nodes)}

    @cached_property
    def latents(self) -> list[int]:
        """The numbers of the latent nodes."""
        return [number for number, node in enumerate(self.graph.nodes) if node.kind == "latent"]

    @cached_property
    def logits(self) -> list[int]:
        """The numbers of the logit nodes, in the order of the graph."""
        return [number for number, node in enumerate(self.graph.nodes) if node.kind == "logit"]

    def changes(self, change_CT: Floats) -> Floats:
        """Return by how much every node changes, along all paths, where some are changed by hand [C, T]."""
        total_CT, step_CT = change_CT.copy(), change_CT
        for _layer in range(len(self.graph.nodes)):
            step_CT = self.direct(step_CT)
            if not step_CT.any():
                break
            total_CT = total_CT + step_CT
        return total_CT

    def direct(self, change_CT: Floats) -> Floats:
        """Return by how much nodes change along single edges [C, T]."""
        found_TC = np.zeros(change_CT.shape[::-1])
        np.add.at(found_TC, self.row_P, self.weight_P[:, None] * change_CT.T[self.column_P])
        return found_TC.T

    def scaled(self, nodes: Sequence[int], factor: float) -> Floats:
        """Return changes that multiply one node each by a factor [C, T]; 0 cuts it."""
        found_CT = np.zeros((len(nodes), len(self.value_T)))
        found_CT[np.arange(len(nodes)), list(nodes)] = (factor - 1) * self.value_T[list(nodes)]
        return found_CT

    def paths(self, logit: int, number: int) -> list[Path]:
        """Return the strongest paths of at least two edges from a latent to a logit, strongest first.

        Each node keeps its `number` strongest ways on, so none of the strongest is missed among the
        strongest LONGEST_EDGES edges.
        """
        strongest_P = np.argsort(-np.abs(self.weight_P * self.value_T[self.column_P]), kind="stable")
        onward: dict[int, list[tuple[int, float]]] = {}
        for edge in strongest_P[:LONGEST_EDGES].tolist():
            row, column = int(self.row_P[edge]), int(self.column_P[edge])
            onward.setdefault(column, []).append((row, float(self.weight_P[edge])))
        latents = set(self.latents)
        ways: dict[int, list[tuple[float, tuple[int, ...]]]] = {logit: [(1.0, (logit,))]}
        # Edges lead from earlier layers to later ones: the last layer's ways are found first.
        for node in sorted(latents, key=lambda n: -self.graph.nodes[n].layer):
            found = [
                (weight * factor, (node, *way))
                for row, weight in onward.get(node, ())
                for factor, way in ways.get(row, ())
            ]
            ways[node] = heapq.nlargest(number, found, key=lambda each: abs(each[0]))
        paths = [
            Path(way, factor * float(self.value_T[way[0]]))
            for node in latents
            for factor, way in ways[node]
            if len(way) > 2
        ]
        return heapq.nlargest(number, paths, key=lambda each: abs(each.effect))


def value_of(node: "Node") -> float:
    """Return the value of a node at the prompt, in units of which its edges are linear."""
    return float(node.activation) if node.kind == "latent" and node.activation is not None else 1.0


def _numbers(values: object) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)
