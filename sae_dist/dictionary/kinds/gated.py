"""The Gated kind: one encoder decides which latents fire and, scaled and shifted, how strongly.

Rajamanoharan et al. 2024, arXiv 2404.16014.

Letters: as core.types; N columns of `partial`.
"""

import torch
from torch import Tensor

from sae_dist.dictionary.base import Dictionary
from sae_dist.dictionary.penalised import Tile, TiledDictionary


class Gated(TiledDictionary):
    """A dictionary with code = relu(exp(r_mag) z + b_mag) where z + b_gate > 0; z = W_enc (x - b_dec).

    The step of gate = z + b_gate has no gradient. The gate learns from the penalty, the sum of relu(gate),
    and from an auxiliary reconstruction by relu(gate) through a decoder held fixed.
    """

    sharded = ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec")
    lr_groups = Dictionary.lr_groups | {"b_gate": "bias", "b_mag": "bias", "r_mag": "encoder"}
    form = "gated"

    def tile(self, z_Bf: Tensor, W_dec_fE: Tensor, vectors: dict[str, Tensor]) -> Tile:
        """Return the contribution of a tile of latents; see `TiledDictionary.tile`."""
        gate_Bf = z_Bf + vectors["b_gate"]
        magnitude_Bf = (z_Bf * vectors["r_mag"].exp() + vectors["b_mag"]).relu()
        code_Bf = magnitude_Bf * (gate_Bf > 0)
        gated_Bf = gate_Bf.relu()
        active_Bf = code_Bf > 0
        penalty = gated_Bf.sum()
        return Tile(
            partial_BN=torch.cat([code_Bf @ W_dec_fE, gated_Bf @ W_dec_fE.detach()], 1),
            penalty=penalty,
            extra=torch.zeros_like(penalty),
            num_codes=active_Bf.sum(),
            fired_f=active_Bf.any(0),
        )

    def other_losses(self, rows_bC: Tensor, partial_BN: Tensor) -> Tensor:
        """Return the squared error of the auxiliary reconstruction, for this rank's rows."""
        return self.error(rows_bC, partial_BN, frozen=True).square().sum()
