"""The Matryoshka kind: BatchTopK with nested prefixes of latents that each reconstruct alone.

Bussmann et al. 2025, arXiv 2503.17547.

Letters: as core.types; L levels.
"""

import torch
from torch import Tensor

from sae_dist.dictionary.base import Setting
from sae_dist.dictionary.kinds.batchtopk import BatchTopK
from sae_dist.dictionary.latents import levels
from sae_dist.dictionary.sparse import Pairs, decode


class Matryoshka(BatchTopK):
    """A dictionary with BatchTopK's codes over all latents, and the mean loss over prefixes of the latents.

    The reconstruction of a prefix is that of the prefix before it plus that of its own level, so each code
    is decoded once.
    """

    def __init__(self, setting: Setting):
        super().__init__(setting)
        assert self.cfg.prefixes is not None
        self.num_levels = len(self.cfg.prefixes)
        level_F = levels(self.cfg.num_latents, self.cfg.prefixes)[self.first : self.first + self.F]
        self.level_F = level_F.to(setting.device)

    def reconstruct(self, rows_bC: Tensor, code_P: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the error with all latents, and the sum of squares averaged over prefixes."""
        partials = [
            decode(code_P[place_P], self.W_dec, part, self.kernels, self.row_terms)
            for place_P, part in pairs.split(self.level_F[pairs.latent_P], self.num_levels)
        ]
        whole_BE, *others = partials
        first_bE = self.error(rows_bC, whole_BE)
        parts_bLE = (
            self.shard.scatter_sum_rows(torch.stack(others, 1)) if others else first_bE[:, None][:, :0]
        )
        errors_bLE = first_bE[:, None] - torch.cat(
            [torch.zeros_like(first_bE[:, None]), parts_bLE], 1
        ).cumsum(1)
        return errors_bLE[:, -1], errors_bLE.square().sum() / self.num_levels
