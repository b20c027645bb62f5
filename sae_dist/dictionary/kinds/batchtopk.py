"""The BatchTopK kind: k codes per row, on average over the batch (Bussmann et al. 2024, arXiv 2412.06410)."""

import torch
from torch import Tensor

from sae_dist.core.types import Codes
from sae_dist.dictionary.base import Setting, Tensors
from sae_dist.dictionary.batch_selection import select_batch, slots_for
from sae_dist.dictionary.selecting import Found, SelectedDictionary


class BatchTopK(SelectedDictionary):
    """A dictionary with code = relu(score) for the batch's k * rows largest scores, over shards and replicas.

    Selection needs the batch. Inference uses a threshold instead: the running mean of the smallest selected
    score, below zero before the first step. It is exported as a JumpReLU with equal thresholds.
    """

    scalars = ("threshold",)
    form = "jumprelu"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.threshold = torch.full((), -1.0, device=setting.device, dtype=setting.dtype)

    @classmethod
    def to_form(cls, tensors: Tensors) -> Tensors:
        """Return the encoder's bias, and the same threshold for all latents; see `Dictionary.to_form`."""
        own = super().to_form(tensors)
        return {**own, "threshold_F": tensors["threshold"].expand(len(tensors["W_enc"]))}

    @classmethod
    def from_form(cls, vectors: Tensors, norm_F: Tensor, scale: float) -> Tensors:
        """Return the bias and, where there is one, the threshold; see `Dictionary.from_form`."""
        own = super().from_form(vectors, norm_F, scale)
        return {**own, "threshold": vectors["threshold_F"][0] * scale} if "threshold_F" in vectors else own

    def select(self, x_BD: Tensor, dead_F: Tensor | None) -> tuple[Codes, Found | None]:
        """Select the best scores of the whole batch, and update the threshold."""
        topology = self.setting.topology
        first, dead = self.candidates(x_BD, slots_for(self.cfg.k, self.F, topology), dead_F)
        found = select_batch(
            x_BD,
            self.W_enc,
            self.b_enc,
            self.cfg.k,
            self.setting.rows,
            topology,
            self.kernels,
            first,
            self.redone,
        )
        beta = self.cfg.threshold_beta
        assert beta is not None
        moved = beta * self.threshold + (1 - beta) * found.threshold
        self.threshold.copy_(torch.where(self.threshold < 0, found.threshold, moved))
        return found.codes, dead
