"""Some latents of a dictionary: their rows alone, read without the rest.

Letters: as core.types; I the named latents.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from sae_dist.export.exported import ExportedSae


@dataclass(frozen=True)
class SomeLatents:
    """The rows of I latents, in memory.

    Attributes:
        latents: their numbers in the dictionary.
        sae: a dictionary of these latents alone.
    """

    latents: list[int]
    sae: ExportedSae

    @classmethod
    def of(cls, sae: ExportedSae, latents: list[int]) -> "SomeLatents":
        """Read the rows of latents that exist."""
        index = torch.tensor(latents, dtype=torch.int64, device=sae.W_dec_FE.device)
        tile = sae.tile(index)
        return cls(latents, replace(tile, W_enc_FD=tile.W_enc_FD.contiguous()))

    @property
    def W_enc_ID(self) -> Tensor:
        """Their rows of the encoder."""
        return self.sae.W_enc_FD

    @property
    def W_dec_IE(self) -> Tensor:
        """Their rows of the decoder."""
        return self.sae.W_dec_FE

    def scores(self, x_BD: Tensor) -> Tensor:
        """Return z = W_enc (x - b_dec), or W_enc x in a transcoder, plus the bias if there is one [B, I].

        In place of B there may be any number of axes.
        """
        sae = self.sae
        return linear(x_BD if sae.transcoder else x_BD - sae.b_dec_E, sae.W_enc_FD, sae.b_enc_F)

    def codes(self, x_BD: Tensor, threshold: float | None = None) -> Tensor:
        """Return the codes of the latents [B, I].

        Args:
            threshold: of TopK, whose selection needs all latents: scores above it count as selected. At
                least 0.
        """
        sae = self.sae
        if sae.form.codes is None:
            return torch.nn.functional.threshold(self.scores(x_BD), threshold or 0.0, 0.0)
        z_BI = (x_BD if sae.transcoder else x_BD - sae.b_dec_E) @ sae.W_enc_FD.T
        return sae.form.codes(z_BI, sae.vectors)

    def to(self, device: torch.device) -> "SomeLatents":
        """Return the same latents on another device."""
        return replace(self, sae=self.sae.to(device))
