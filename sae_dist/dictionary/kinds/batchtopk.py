"""BatchTopK: k codes per row on average over the batch (Bussmann et al. 2024, arXiv 2412.06410)."""

import torch
from torch import Tensor

from sae_dist.core.types import Codes
from sae_dist.dictionary.base import Setting, Tensors
from sae_dist.dictionary.batch_selection import select_batch, slots_for
from sae_dist.dictionary.selecting import Found, SelectedDictionary


class BatchTopK(SelectedDictionary):
    """code = relu(score) for the k * rows largest scores of the batch, over all shards and replicas.

    The batch is needed to encode, so inference replaces it by a threshold: a running mean of the smallest
    score that won, exported as a JumpReLU of equal thresholds.
    """

    scalars = ("threshold",)
    form = "jumprelu"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.threshold = torch.full((), -1.0, device=setting.device, dtype=setting.dtype)

    @classmethod
    def to_form(cls, tensors: Tensors) -> Tensors:
        """See `Dictionary.to_form`."""
        own = super().to_form(tensors)
        return {**own, "threshold_F": tensors["threshold"].expand(len(tensors["W_enc"]))}

    @classmethod
    def from_form(cls, vectors: Tensors, norm_F: Tensor, scale: float) -> Tensors:
        """See `Dictionary.from_form`; a finished TopK has no threshold."""
        own = super().from_form(vectors, norm_F, scale)
        return {**own, "threshold": vectors["threshold_F"][0] * scale} if "threshold_F" in vectors else own

    def select(self, x_BD: Tensor, dead_F: Tensor | None) -> tuple[Codes, Found | None]:
        """The best scores of the whole batch; moves the threshold."""
        topology = self.setting.topology
        first, dead = self.candidates(x_BD, slots_for(self.cfg.k, self.F, topology), dead_F)
        found = select_batch(
            x_BD, self.W_enc, self.b_enc, self.cfg.k, self.setting.rows, topology, self.kernels, first
        )
        beta = self.cfg.threshold_beta
        assert beta is not None
        moved = beta * self.threshold + (1 - beta) * found.threshold
        self.threshold.copy_(torch.where(self.threshold < 0, found.threshold, moved))
        return found.codes, dead
