"""The nearest decoder rows of a part's latents, among all: exact, in tiles, so that [F, F] is never held.

Letters: as core.types; f latents of the part; t latents of a tile; M candidates.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_dist.atlas.describe.lists import Ranked
from sae_dist.atlas.describe.products import BLOCK, MARGIN, OTHER_TILE, OWN_TILE, Best, ranked, tiles

CPU = torch.device("cpu")
CHEAP_PRODUCTS = {"cpu": 1e14, "cuda": 1e17}
"""The most multiplications spent on this without request: about an hour on two cores or on one GPU."""


def why_not(num_latents: int, width: int, device: torch.device) -> str | None:
    """Explain why nearest rows are not computed unless that is asked for; None: they are."""
    products = float(num_latents) ** 2 * width
    if products <= CHEAP_PRODUCTS[device.type]:
        return None
    return f"{num_latents} latents of {width} numbers take {products:.0e} multiplications on {device.type}"


@torch.no_grad()
def near_rows(
    W_dec_FE: Tensor, latents: range, num: int, *, device: torch.device = CPU, other_tile: int = OTHER_TILE
) -> Ranked:
    """Find the `num` other decoder rows with the greatest cosines, for each latent of a part.

    A row of zeros has no near rows, and is near to none. Among cosines that are equal in float32 the lower
    latent comes first.

    Args:
        W_dec_FE: of all latents, in memory or mapped from a file; read a tile at a time.
        device: that multiplies.
    """
    blocks = [latents[block] for block in tiles(len(latents), BLOCK)]
    return Ranked.joined([_of_block(W_dec_FE, each, num, device, other_tile) for each in blocks])


def _of_block(W_dec_FE: Tensor, latents: range, num: int, device: torch.device, other_tile: int) -> Ranked:
    raw_fE = W_dec_FE[latents.start : latents.stop]
    own_fE = _normalized(raw_fE, device)
    number_f = torch.arange(latents.start, latents.stop, device=device)
    best = Best(len(latents), num + MARGIN, device)
    for others in tiles(len(W_dec_FE), other_tile):
        other_tE = _normalized(W_dec_FE[others], device)
        zero_t = ~other_tE.any(1)
        for rows in tiles(len(latents), OWN_TILE):
            cosine_tt = own_fE[rows] @ other_tE.T
            cosine_tt[:, zero_t] = -torch.inf
            own_t = number_f[rows] - others.start
            row_t = ((own_t >= 0) & (own_t < len(other_tE))).nonzero().squeeze(1)
            cosine_tt[row_t, own_t[row_t]] = -torch.inf
            best.take(rows, cosine_tt, others.start)
    best.value_fM[~own_fE.any(1)] = -torch.inf
    return ranked(raw_fE, W_dec_FE, best, num, cosines=True)


def _normalized(row_tE: Tensor, device: torch.device) -> Tensor:
    return normalize(row_tE.to(device).float(), dim=1)
