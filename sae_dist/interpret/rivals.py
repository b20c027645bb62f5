"""A sample of a dictionary's latents, which may tell that another one is not selected without all of them.

Letters: as core.types; S latents of the sample.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_dist.export.exported import ExportedSae

NUM_RIVALS = 512


@dataclass(frozen=True)
class Rivals:
    """A sample of the latents of a TopK dictionary: a latent that k of them surpass is not selected.

    Attributes:
        bias_S: b_enc - W_enc b_dec.
        slack: by how much a score may differ from itself computed otherwise, as a share of the norms of
            activation and b_dec together.
    """

    W_SD: Tensor
    bias_S: Tensor
    k: int
    slack: float
    centre: float

    @classmethod
    def of(cls, sae: ExportedSae, longest: float) -> "Rivals | None":
        """Take latents at equal distances; None: there are too few for that to tell anything.

        Args:
            longest: the norm of the encoder's longest row.
        """
        assert sae.b_enc_F is not None and sae.k is not None
        step = sae.num_latents // NUM_RIVALS
        if step < 2 or NUM_RIVALS < 2 * sae.k:
            return None
        W_SD, bias_S = sae.W_enc_FD[::step].contiguous(), sae.b_enc_F[::step]
        if not sae.transcoder:
            bias_S = bias_S - W_SD @ sae.b_dec_E
        slack = 8 * sae.width * torch.finfo(W_SD.dtype).eps * longest
        return cls(W_SD, bias_S, sae.k, slack, float(sae.b_dec_E.norm()))

    def surpass(self, x_D: Tensor, score: float) -> bool:
        """Return whether it is certain that k latents have greater scores."""
        limit = score + self.slack * (torch.linalg.vector_norm(x_D).item() + self.centre)
        return int((torch.addmv(self.bias_S, self.W_SD, x_D) > limit).count_nonzero()) >= self.k
