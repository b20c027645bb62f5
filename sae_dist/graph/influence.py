"""The weight of each source in what a model says: shares of rows, followed from the logits back.

Letters: as core.types; n targets of a block, C sources, P latents, which are the first sources.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_dist.graph.store import Store

TINY = torch.finfo(torch.float64).tiny


def influence(store: Store, weight_T: Tensor, num_latents: int, depth: int) -> Tensor:
    """Return how much of the logits comes through each source, by absolute shares [C], float64.

    A target passes on what it has to its sources in proportion to the absolute values of its row. A latent
    without a row passes nothing on.

    Args:
        weight_T: of each logit; they sum to 1.
        depth: the number of places.
    """
    found_C = torch.zeros(store.columns, dtype=torch.float64)
    # Sources come before their targets: after as many rounds as a path has edges, nothing changes.
    for _ in range(depth + 1):
        next_C = torch.zeros_like(found_C)
        share_1 = torch.cat([found_C[:num_latents], weight_T.double()])
        for targets_n, rows_nC in _blocks(store):
            size_nC = rows_nC.abs()
            next_C += (share_1[targets_n] / size_nC.sum(1).clamp(min=TINY)) @ size_nC
        if torch.equal(next_C, found_C):
            break
        found_C = next_C
    return found_C


def effects(store: Store, code_P: Tensor, num_logits: int, depth: int) -> Tensor:
    """Return what each source adds to each logit along all paths through latents with rows [C, T], float64.

    A latent that gets a share less of what makes it passes on as much less.
    """
    # A row for the logits behind the latents', so that both kinds of targets are read alike.
    whole_1 = torch.cat([code_P.double(), torch.ones(num_logits, dtype=torch.float64)])
    found_CT = torch.zeros(store.columns, num_logits, dtype=torch.float64)
    logits_TT = torch.eye(num_logits, dtype=torch.float64)
    for _ in range(depth + 1):
        passed_1T = torch.cat([found_CT[: len(code_P)], logits_TT]) / whole_1[:, None]
        next_CT = torch.zeros_like(found_CT)
        for targets_n, rows_nC in _blocks(store):
            next_CT += rows_nC.T @ passed_1T[targets_n]
        if torch.equal(next_CT, found_CT):
            break
        found_CT = next_CT
    return found_CT


def _blocks(store: Store) -> Iterator[tuple[Tensor, Tensor]]:
    for block in store.blocks:
        targets_n, rows_nC = store.read(block)
        yield targets_n, rows_nC.double()


def smallest_set(score: Tensor, share: float) -> Tensor:
    """Return a mask of the largest scores that reach a share of their sum; among equals the first."""
    order = torch.argsort(score, descending=True, stable=True)
    reached = score[order].cumsum(0)
    needed = int((reached < share * score.sum()).sum()) + 1
    kept = torch.zeros_like(score, dtype=torch.bool)
    kept[order[:needed]] = True
    return kept & (score > 0)
