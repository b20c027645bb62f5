"""Redundancy: how close decoder rows are to each other, computed in tiles: [F, F] is never held.

Letters: as core.types; t latents of a tile.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_dist.core.files import write_tensors

TILE = 2048
CHEAP_PRODUCTS = 2e13
"""The most multiplications spent on this without request: about a minute on a small machine."""
SHARES = (0.7, 0.9)
EDGES = [round(-1 + 0.05 * i, 2) for i in range(41)]
FILE = "neighbours.safetensors"


def redundancy(W_FE: Tensor, asked: bool, folder: Path | None = None) -> dict[str, Any]:
    """Compute `redundancy` of eval.json, or null with a reason; in a folder, write neighbours.safetensors.

    mean          of the largest cosines of all rows
    above_0.7     share of rows whose largest cosine is above .7; above_0.9: above .9
    cosine_edges, latents: their histogram

    Args:
        asked: compute it whatever it costs: F^2 E multiplications / 2.
    """
    F, E = W_FE.shape
    if F < 2:
        return {"redundancy": None, "redundancy_reason": "there is one latent"}
    if not asked and F * F * E / 2 > CHEAP_PRODUCTS:
        reason = f"{F} latents take {F * F * E / 2:.0e} multiplications; --full computes it"
        return {"redundancy": None, "redundancy_reason": reason}
    best_F, which_F = nearest_rows(W_FE)
    if folder is not None:
        write_tensors(folder / FILE, {"nearest": which_F.cpu(), "cosine": best_F.float().cpu()})
    best_F = best_F.double().clamp(-1, 1)
    found: dict[str, Any] = {"mean": float(best_F.mean())}
    found |= {f"above_{share}": float((best_F > share).double().mean()) for share in SHARES}
    counts = torch.histc(best_F.cpu(), len(EDGES) - 1, EDGES[0], EDGES[-1])
    return {"redundancy": found | {"cosine_edges": EDGES, "latents": counts.long().tolist()}}


def nearest_rows(W_FE: Tensor, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Find for each row the largest cosine with another row, and the number of that row: [F] each.

    A row of zeros has cosine 0 with every row. Among equal cosines the lower row wins.
    """
    F = len(W_FE)
    best_F = W_FE.new_full((F,), -torch.inf)
    which_F = torch.zeros(F, dtype=torch.int64, device=W_FE.device)

    def take(rows: slice, cosine_tt: Tensor, first: int) -> None:
        value_t, place_t = cosine_tt.max(1)
        better_t = value_t > best_F[rows]
        best_F[rows] = torch.where(better_t, value_t, best_F[rows])
        which_F[rows] = torch.where(better_t, place_t + first, which_F[rows])

    for first in range(0, F, tile):
        rows = slice(first, min(first + tile, F))
        own_tE = normalize(W_FE[rows], dim=1)
        for second in range(first, F, tile):
            others = slice(second, min(second + tile, F))
            cosine_tt = own_tE @ normalize(W_FE[others], dim=1).T
            if first == second:
                cosine_tt.fill_diagonal_(-torch.inf)
                take(rows, cosine_tt, second)
                continue
            take(rows, cosine_tt, second)
            take(others, cosine_tt.T, first)
    return best_F, which_F
