"""The attribution graph of a prompt: which latents made a model say something, and through which others.

Letters: as core.types; M nodes, L links, T logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from sae_dist.graph.check.verdict import Verdict
    from sae_dist.interpret.dictionary import Dictionary

Kind = Literal["latent", "error", "token", "logit"]


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        id: `f_<layer>_<position>_<latent>`, `e_<layer>_<position>`, `t_<position>` or `l_<token>`.
        layer: index of the place in `Graph.layers`; -1 of a token, their number of a logit.
        token: of the vocabulary, of tokens and logits.
        activation: of a latent, on the prompt.
        influence: the share of what the logits get that comes through it; of a logit its weight.
        probability: of a logit, as the model gives it.
    """

    id: str
    kind: Kind
    layer: int
    position: int
    latent: int | None = None
    token: int | None = None
    activation: float | None = None
    influence: float = 0.0
    probability: float | None = None


@dataclass(frozen=True)
class Checks:
    """The errors of a graph's numbers, each relative to the sum of the absolute values that it is made of.

    Attributes:
        row_sums: of sources and constant, against the untouched model's pre-activation or logit; the worst.
        row_sums_absolute: the same as it is.
        linear: of targets where all sources are multiplied by random factors, against what rows predict.
        faithful: of the replacement model with nothing changed, against the untouched model.
        tolerance: what each of them may be.
        targets: how many rows were checked.
        norms, patterns, gates: how many modules, softmaxes and gates are held constant.
    """

    row_sums: float
    row_sums_absolute: float
    linear: float
    faithful: float
    tolerance: float
    dtype: str
    targets: int
    norms: int
    patterns: int
    gates: int = 0


@dataclass(frozen=True)
class Layer:
    """A place of the graph.

    Attributes:
        hook: None: it has no transcoder, and all of its output is an error.
        folder: of its transcoder.
    """

    target: str
    hook: str | None = None
    folder: str | None = None
    kind: str | None = None
    num_latents: int | None = None


@dataclass(frozen=True)
class Graph:
    """An attribution graph.

    A link's weight is what its source adds to its target's pre-activation, or logit less the mean of all
    logits, directly: through residual stream and attention, not through another latent.

    Attributes:
        nodes: tokens, then latents by layer, position and number, errors, logits.
        rows, columns: target and source of each link, numbers of nodes, sorted by both [L], int64.
        weights: of each link [L], float32.
        constants: what each target would be without any source [M]; 0 of nodes that are no targets.
        total: what each node adds to each logit along all paths [M, T]; logits themselves 1.
        values: of latents the activation, of logits the logit less the mean of all, else 0 [M].
        ids, tokens: the prompt's.
        error_share, unfollowed: the influence that ends in errors, or in latents that were not followed.
        influence_sum: of all nodes before pruning.
        replacement_score: of what ends in tokens and errors, the share of tokens.
        completeness: how much of nodes' inputs is no error, weighted by influence; tokens and errors count
            as nodes that have no error as input.
        latents: how many fire on the prompt, how many were followed, how many are left.
        settings: what `trace` was given.
    """

    nodes: tuple[Node, ...]
    rows: Tensor
    columns: Tensor
    weights: Tensor
    constants: Tensor
    total: Tensor
    values: Tensor
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    targets: tuple[str, ...]
    prompt: str
    model: str
    set_name: str
    layers: tuple[Layer, ...]
    error_share: float
    unfollowed: float
    influence_sum: float
    replacement_score: float
    completeness: float
    latents: tuple[int, int, int]
    checks: Checks
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each node by its id."""
        return {node.id: number for number, node in enumerate(self.nodes)}

    def numbers(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of nodes.

        Raises:
            ConfigError: there is no such node.
        """
        for each in ids:
            if each not in self.index:
                raise ConfigError(f"the graph has no node {each}; its ids are such as {self.nodes[-1].id}")
        return [self.index[each] for each in ids]

    @property
    def logits(self) -> tuple[Node, ...]:
        """The logits, most probable first as they were chosen."""
        return tuple(node for node in self.nodes if node.kind == "logit")

    def effect(self, ids: Sequence[str]) -> Tensor:
        """Return what nodes add to each logit along all paths [len(ids), T]; cutting one takes that away.

        All rows count, those of nodes that were pruned from the graph, too.

        Raises:
            ConfigError: there is no such node.
        """
        return self.total[self.numbers(ids)]

    def matrix(self) -> Tensor:
        """Return the weights as a matrix, targets in rows [M, M]."""
        found = self.weights.new_zeros(len(self.nodes), len(self.nodes))
        found[self.rows, self.columns] = self.weights
        return found

    def effect_on(self, ids: Sequence[str], targets: Sequence[str]) -> Tensor:
        """Return what nodes add to other nodes along all paths of the graph's links [len(ids), len(targets)].

        Raises:
            ConfigError: there is no such node.
        """
        sources, wanted = self.numbers(ids), self.numbers(targets)
        unit_M = self.values.double().where(self.values != 0, 1.0)
        found = torch.zeros(len(self.nodes), len(wanted), dtype=torch.float64)
        weights = self.matrix().double()
        ends = torch.zeros_like(found)
        ends[wanted, torch.arange(len(wanted))] = unit_M[wanted]
        for _ in range(len(self.layers) + 2):
            found = weights.T @ ((found + ends) / unit_M[:, None])
        own = torch.tensor([[source == target for target in wanted] for source in sources])
        return torch.where(own, unit_M[wanted], found[sources]).float()

    def save(self, folder: str | Path) -> Path:
        """Write graph.json and graph.safetensors; return the folder.

        Raises:
            OSError: the folder cannot be written.
        """
        from sae_dist.graph.written import save

        return save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Graph":
        """Read a graph that was saved.

        Raises:
            ConfigError: there is none, or its files are damaged.
        """
        from sae_dist.graph.written import load

        return load(folder)

    def __repr__(self) -> str:
        """Describe the graph in a line."""
        said = ", ".join(f"{text!r} {node.probability:.2f}" for text, node in self._shown())
        return (
            f"Graph({len(self.ids)} tokens -> {said}; {len(self.nodes)} nodes, {len(self.weights)} links, "
            f"{self.error_share:.0%} of the influence in errors)"
        )

    def check(self, dictionaries: "Sequence[Dictionary]", lm: Any, **how: Any) -> "Verdict":
        """Compare the graph with what interventions do in the real model; see `check.check.check`.

        Raises:
            ConfigError: graph, dictionaries and model do not belong together.
        """
        from sae_dist.graph.check.check import check

        return check(self, dictionaries, lm, **how)

    def _repr_html_(self) -> str:
        """Show the graph's numbers and its most influential latents in a notebook."""
        from sae_dist.graph.page.notebook import fragment

        return fragment(self)

    def to_html(
        self,
        verdict: "Verdict | None" = None,
        dictionaries: "Sequence[Dictionary] | None" = None,
        lm: Any = None,
    ) -> str:
        """Return the page of the graph, which needs nothing else; see `graph.page.page.page`.

        Args:
            verdict: of a check; None: the page says that there was none.
            dictionaries: the graph's; what their atlases say of latents is shown, or else what the head of
                `lm` makes of them.

        Raises:
            ConfigError: an atlas is damaged, or of another dictionary.
        """
        from sae_dist.graph.known import known_of
        from sae_dist.graph.page.page import page

        return page(self, verdict, known_of(self, dictionaries, lm) if dictionaries else None)

    def to_neuronpedia(
        self, dictionaries: "Sequence[Dictionary] | None" = None, lm: Any = None, **names: Any
    ) -> dict[str, Any]:
        """Return the graph in Neuronpedia's format; see `graph.formats.neuronpedia.neuronpedia`.

        Args:
            dictionaries, lm: as for the page.
            names: slug, scan, description, source_set and features_url.

        Raises:
            ConfigError: an atlas is damaged, or of another dictionary.
        """
        from sae_dist.graph.formats.neuronpedia import neuronpedia
        from sae_dist.graph.known import known_of

        return neuronpedia(self, known_of(self, dictionaries, lm) if dictionaries else None, **names)

    def _shown(self) -> list[tuple[str, Node]]:
        return list(zip(self.targets, self.logits, strict=True))[:3]
