"""The effects of latents on the next token's logits: decoder rows through the unembedding.

Straight to it (the direct path of "logit attribution"), or through the mean Jacobian of the layers between
first. Either way without the final norm, an approximation that ranks tokens.

Letters: as core.types; f latents of the part; t rows of a tile; H width of the residual stream.
"""

import torch
from torch import Tensor

from sae_dist.atlas.describe.lists import Ranked
from sae_dist.atlas.describe.products import BLOCK, MARGIN, OTHER_TILE, OWN_TILE, Best, ranked, tiles
from sae_dist.core.types import LlmFacts


def why_none(facts: LlmFacts) -> str | None:
    """Explain why decoder rows have no direct effect on logits; None: they have."""
    hook = facts.target_hook or facts.hook
    if not facts.causal:
        return f"{facts.name} is an encoder: it has no head that predicts tokens"
    path, direction = hook.split(":")
    *parents, last = path.split(".")
    is_layer = last.isdigit()
    of_layer = bool(parents) and parents[-1].isdigit() and "norm" not in last and not last.startswith("ln")
    if not is_layer and not (of_layer and direction == "out"):
        return f"the vectors at {hook} are not added to the residual stream, which the head reads"
    return None


def why_no_fit(width: int, head_width: int) -> str | None:
    """Explain why rows of `width` numbers cannot be multiplied with the head; None: they can."""
    if width == head_width:
        return None
    return f"decoder rows have {width} numbers, the head reads {head_width}"


@torch.no_grad()
def top_logits(
    W_dec_fE: Tensor,
    W_U_VH: Tensor,
    num: int,
    jacobian_HE: Tensor | None = None,
    *,
    device: torch.device | None = None,
    tile: int = OTHER_TILE,
) -> tuple[Ranked, Ranked]:
    """Find the tokens whose logits decoder rows raise most per unit of code, and those they lower most.

    Each list has `num` tokens, half of the vocabulary at most; equal logits are ranked by token. [f, V] is
    never held.

    Args:
        W_U_VH: the unembedding without rows that stand for no token, in memory or mapped from a file.
        jacobian_HE: mean Jacobian of the layers between; None: rows go to the unembedding as they are.
        device: that multiplies; None: that of the unembedding.
    """
    num, device = min(num, len(W_U_VH) // 2), device or W_U_VH.device
    up, down = [], []
    for block in tiles(len(W_dec_fE), BLOCK):
        row_fH = W_dec_fE[block].to(device, torch.float64)
        if jacobian_HE is not None:
            row_fH = row_fH @ jacobian_HE.to(device, torch.float64).T
        most, least = _best(row_fH, W_U_VH, num + MARGIN, tile)
        up.append(ranked(row_fH, W_U_VH, most, num))
        down.append(ranked(row_fH, W_U_VH, least, num, sign=-1))
    return Ranked.joined(up), Ranked.joined(down)


def _best(row_fH: Tensor, W_U_VH: Tensor, num: int, tile: int) -> tuple[Best, Best]:
    """Find the greatest logits of each row, and the least, as their negatives."""
    most, least = (Best(len(row_fH), num, row_fH.device) for _ in range(2))
    for tokens in tiles(len(W_U_VH), tile):
        W_U_tH = W_U_VH[tokens].to(row_fH.device).float()
        for rows in tiles(len(row_fH), OWN_TILE):
            logit_tt = row_fH[rows].float() @ W_U_tH.T
            most.take(rows, logit_tt, tokens.start)
            least.take(rows, -logit_tt, tokens.start)
    return most, least
