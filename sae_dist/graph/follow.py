"""The choice of targets: logits first, then the latents through which most comes, ranked anew as rows arrive.

Letters: as core.types; T logits, P latents.
"""

import torch
from torch import Tensor

from sae_dist.distributed.collectives import Axis
from sae_dist.graph.influence import influence
from sae_dist.graph.replacement import Replacement
from sae_dist.graph.store import Store

BLOCKS = 4
"""So many blocks of targets are computed between two rankings, on however many ranks."""


def follow(
    replacement: Replacement,
    store: Store,
    weight_T: Tensor,
    *,
    max_nodes: int,
    batch: int,
    axis: Axis | None = None,
) -> None:
    """Compute the rows of the logits, and of at most `max_nodes` latents, into a store.

    Which targets are in a block depends on the rows alone, and each block is computed in the same shapes. So
    rows are the same, to the bit, on any number of ranks and after a stop.

    Args:
        axis: ranks that share the blocks and see the same folder.
    """
    P, T = replacement.num_latents, len(weight_T)
    with replacement.opened(batch):
        compute(replacement, store, list((P + torch.arange(T)).split(batch)), axis)
        open_P = torch.ones(P, dtype=torch.bool)
        while (left := max_nodes - int((~open_P).sum())) > 0:
            found_P = influence(store, weight_T, P, len(replacement.sites))[:P]
            found_P[~open_P] = 0
            best = torch.argsort(found_P, descending=True, stable=True)[: min(left, BLOCKS * batch)]
            best = best[found_P[best] > 0]
            if not len(best):
                return
            open_P[best] = False
            compute(replacement, store, list(best.split(batch)), axis)


def compute(replacement: Replacement, store: Store, blocks: list[Tensor], axis: Axis | None) -> None:
    """Compute blocks of targets, each on one rank, but for those that are there; wait for all ranks."""
    rank, world = (0, 1) if axis is None else (axis.rank, axis.size)
    first = len(store.blocks)
    for number, targets_n in enumerate(blocks):
        if number % world == rank and not store.has(first + number, targets_n):
            store.write(first + number, targets_n, replacement.rows(targets_n))
    if axis is not None:
        axis.sum(torch.zeros(1))
    store.blocks.extend(range(first, first + len(blocks)))
