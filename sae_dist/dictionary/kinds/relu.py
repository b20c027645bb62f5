"""The ReLU kind, with an L1 penalty.

Bricken et al. 2023, "Towards Monosemanticity"; weighted by decoder norms: Anthropic's update of April 2024.

Letters: as core.types; N columns of `partial`.
"""

import torch
from torch import Tensor

from sae_dist.dictionary.base import Setting
from sae_dist.dictionary.penalised import Tile, TiledDictionary


class Relu(TiledDictionary):
    """A dictionary with code = relu(W_enc (x - b_dec) + b_enc), and the sum of code * weight as its penalty.

    The weight is the norm of the latent's decoder row, which is free then, or 1, with rows of unit norm.
    """

    form = "relu"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.weighted = self.cfg.l1_weighting == "decoder_norm"
        if self.weighted:
            self.unit_rows = ()

    def tile(self, z_Bf: Tensor, W_dec_fE: Tensor, vectors: dict[str, Tensor]) -> Tile:
        """Return the contribution of a tile of latents; see `TiledDictionary.tile`."""
        code_Bf = (z_Bf + vectors["b_enc"]).relu()
        active_Bf = code_Bf > 0
        sums_f = code_Bf.sum(0)
        return Tile(
            partial_BN=code_Bf @ W_dec_fE,
            penalty=sums_f @ W_dec_fE.norm(dim=1) if self.weighted else sums_f.sum(),
            extra=torch.zeros_like(sums_f[0]),
            num_codes=active_Bf.sum(),
            fired_f=active_Bf.any(0),
        )
