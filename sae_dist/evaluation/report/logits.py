"""The direct effect of a latent on the next token's logits, its decoder row going straight to the head.

Letters: as core.types; L latents, H width of the residual stream, K tokens that are shown.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_dist.core.types import LlmFacts
from sae_dist.tokens.decoder import Decoder

TOKENS = 8


@dataclass(frozen=True)
class Effect:
    """The tokens whose logits change most per unit of code, strongest first."""

    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]


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


@torch.no_grad()
def effects(W_U_VH: Tensor, row_LH: Tensor, decoder: Decoder) -> list[Effect]:
    """Multiply each decoder row by W_U, without the layers between and the final norm.

    An approximation (the direct path of "logit attribution"): it ranks tokens, and does not show what
    later layers make of the latent.
    """
    W_U_VH = W_U_VH[: len(decoder)]
    count = min(TOKENS, len(W_U_VH) // 2)
    logit_LV = (row_LH.to(W_U_VH) @ W_U_VH.T).float()
    up, down = (logit_LV.topk(count, dim=1, largest=largest) for largest in (True, False))

    def named(value_K: Tensor, token_K: Tensor) -> list[tuple[str, float]]:
        return [
            (decoder.token(n), value) for n, value in zip(token_K.tolist(), value_K.tolist(), strict=True)
        ]

    return [
        Effect(named(up.values[n], up.indices[n]), named(down.values[n], down.indices[n]))
        for n in range(len(row_LH))
    ]
