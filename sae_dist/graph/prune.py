"""The part of a graph that is shown: nodes, then links, through which most of the influence comes.

Letters: as core.types; n targets of a block; N latents with rows, which with T logits are targets; X sources:
the same latents, then errors, then tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_dist.graph.influence import TINY, smallest_set
from sae_dist.graph.store import Store


@dataclass(frozen=True)
class Selected:
    """The rows of a graph, of sources that are nodes alone.

    Attributes:
        column_X: of each source in the store.
        weight: of targets N + T, by source [N + T, X], float64.
        error_X, token_X: which sources are errors, and tokens.
    """

    column_X: Tensor
    weight: Tensor
    error_X: Tensor
    token_X: Tensor
    num_latents: int

    @classmethod
    def of(cls, store: Store, num_latents: int, num_logits: int, num_tokens: int) -> "Selected":
        """Read the rows of a store.

        Args:
            num_latents: of all that fire, with rows or without.
        """
        targets = torch.cat([store.read(block)[0] for block in store.blocks])
        followed_N = targets[targets < num_latents].sort().values
        column_X = torch.cat([followed_N, torch.arange(num_latents, store.columns)])
        N = len(followed_N)
        place = torch.full((num_latents + num_logits,), -1)
        place[followed_N] = torch.arange(N)
        place[num_latents:] = N + torch.arange(num_logits)
        weight = torch.zeros(N + num_logits, len(column_X), dtype=torch.float64)
        for block in store.blocks:
            targets_n, rows_nC = store.read(block)
            weight[place[targets_n]] = rows_nC[:, column_X].double()
        number_X = torch.arange(len(column_X))
        token_X = number_X >= len(column_X) - num_tokens
        return cls(column_X, weight, (number_X >= N) & ~token_X, token_X, N)

    def influence(self, weight_T: Tensor, depth: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return each source's influence [X], and the share of each link in its target's row [N + T, X].

        Args:
            kept: which links count [N + T, X]; None: all.
        """
        size = self.weight.abs() if kept is None else self.weight.abs() * kept
        share = size / size.sum(1, keepdim=True).clamp(min=TINY)
        found_X = torch.zeros(len(self.column_X), dtype=torch.float64)
        for _ in range(depth + 1):
            next_X = torch.cat([found_X[: self.num_latents], weight_T.double()]) @ share
            if torch.equal(next_X, found_X):
                break
            found_X = next_X
        return found_X, share


@dataclass(frozen=True)
class Pruned:
    """The selected nodes that are kept, and scores of all of them.

    Attributes:
        source_X: which sources are nodes; all tokens are.
        link: which links are kept [N + T, X].
        influence_X: of all sources, before anything is left out.
    """

    source_X: Tensor
    link: Tensor
    influence_X: Tensor
    replacement_score: float
    completeness: float


def prune(
    selected: Selected, weight_T: Tensor, depth: int, node_threshold: float, edge_threshold: float
) -> Pruned:
    """Keep the fewest nodes, then links, through which the given shares of all influence come; all tokens."""
    N = selected.num_latents
    influence_X, share = selected.influence(weight_T, depth)
    source_X = smallest_set(influence_X, node_threshold) | selected.token_X
    target = torch.cat([source_X[:N], torch.ones(len(weight_T), dtype=torch.bool)])
    link = target[:, None] & source_X & (selected.weight != 0)
    inside_X, inside = selected.influence(weight_T, depth, link)
    passed = torch.cat([inside_X[:N], weight_T.double()])
    score = inside * passed[:, None]
    link[link.clone()] = smallest_set(score[link], edge_threshold)
    source_X = _connected(source_X, link, selected, N)
    target = torch.cat([source_X[:N], torch.ones(len(weight_T), dtype=torch.bool)])
    link &= target[:, None] & source_X
    errors, tokens = float(influence_X[selected.error_X].sum()), float(influence_X[selected.token_X].sum())
    # As circuit-tracer has it: errors and tokens count, too, as nodes without a wrong input.
    weight = torch.cat([influence_X[:N], weight_T.double(), influence_X[N:]])
    clean = torch.cat([1 - share[:, selected.error_X].sum(1), torch.ones_like(influence_X[N:])])
    return Pruned(
        source_X=source_X,
        link=link,
        influence_X=influence_X,
        replacement_score=tokens / max(tokens + errors, TINY),
        completeness=float((clean * weight).sum() / weight.sum()),
    )


def _connected(source_X: Tensor, link: Tensor, selected: Selected, N: int) -> Tensor:
    """Leave out nodes that lead nowhere, and latents that nothing leads to, until there is none."""
    source_X, link = source_X.clone(), link.clone()
    while True:
        leads_X = link.any(0) | selected.token_X
        fed_X = torch.cat([link[:N].any(1), torch.ones_like(source_X[N:])])
        left_X = source_X & leads_X & fed_X
        if torch.equal(left_X, source_X):
            return source_X
        source_X = left_X
        link &= source_X
        link[:N] &= source_X[:N, None]
