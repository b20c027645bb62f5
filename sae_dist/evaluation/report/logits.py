"""The direct effects of a few latents on the next token's logits, as a report shows them.

Letters: as core.types; L latents, H width of the residual stream.
"""

from dataclasses import dataclass

from torch import Tensor

from sae_dist.atlas.describe.effects import top_logits
from sae_dist.atlas.describe.lists import Ranked
from sae_dist.tokens.decoder import Decoder

TOKENS = 8


@dataclass(frozen=True)
class Effect:
    """The tokens whose logits change most per unit of code, strongest first."""

    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]


def effects(W_U_VH: Tensor, row_LH: Tensor, decoder: Decoder) -> list[Effect]:
    """Multiply each decoder row by W_U, without the layers between and the final norm.

    An approximation (the direct path of "logit attribution"): it ranks tokens, and does not show what
    later layers make of the latent.
    """
    up, down = top_logits(row_LH, W_U_VH[: len(decoder)], TOKENS)
    return [Effect(_named(up, n, decoder), _named(down, n, decoder)) for n in range(len(row_LH))]


def _named(ranked: Ranked, row: int, decoder: Decoder) -> list[tuple[str, float]]:
    value = ranked.values[0][row].tolist()
    return [(decoder.token(n), each) for n, each in zip(ranked.id_fN[row].tolist(), value, strict=True)]
