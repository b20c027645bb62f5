"""The JumpReLU kind, with straight-through thresholds (Rajamanoharan et al. 2024, arXiv 2407.14435).

Letters: as core.types; N columns of `partial`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.dictionary.base import Dictionary, Setting, Tensors
from sae_dist.dictionary.penalised import Tile, TiledDictionary

TANH_SLOPE = 4.0
"""The slope of the tanh penalty at 0, per unit of code (Anthropic's update of January 2025)."""


class JumpRelu(TiledDictionary):
    """A dictionary with code = score where score > threshold, else 0; score = W_enc (x - b_dec) + b_enc.

    penalty=l0      the number of codes; with target_l0, the coefficient times (L0 / target - 1)^2 instead
    penalty=tanh    the sum of tanh(4 code)
    preact          the factor of relu(threshold - score), which pulls silent latents to their threshold
    """

    sharded = ("W_enc", "b_enc", "log_threshold", "W_dec")
    lr_groups = Dictionary.lr_groups | {"log_threshold": "encoder"}
    form = "jumprelu"
    log_threshold: Parameter

    def __init__(self, setting: Setting):
        super().__init__(setting)
        assert self.cfg.threshold is not None
        with torch.no_grad():
            self.log_threshold.fill_(math.log(self.cfg.threshold))

    @classmethod
    def to_form(cls, tensors: Tensors) -> Tensors:
        """Return the encoder's bias and the thresholds; see `Dictionary.to_form`."""
        return {"b_enc_F": tensors["b_enc"], "threshold_F": tensors["log_threshold"].exp()}

    @classmethod
    def from_form(cls, vectors: Tensors, norm_F: Tensor, scale: float) -> Tensors:
        """Return the encoder's bias and the thresholds' logarithms; see `Dictionary.from_form`."""
        threshold_F = vectors["threshold_F"] * norm_F * scale
        return {"b_enc": vectors["b_enc_F"], "log_threshold": threshold_F.log()}

    @classmethod
    def cannot_start_from(cls, vectors: Tensors) -> str | None:
        """Return a problem if a threshold has no logarithm; see `Dictionary.cannot_start_from`."""
        if float(vectors["threshold_F"].min()) > 0:
            return None
        return "thresholds of 0 or less, and sae=jumprelu trains their logarithm"

    def tile(self, z_Bf: Tensor, W_dec_fE: Tensor, vectors: dict[str, Tensor]) -> Tile:
        """Return the contribution of a tile of latents; see `TiledDictionary.tile`."""
        threshold_f = vectors["log_threshold"].exp()
        score_Bf = z_Bf + vectors["b_enc"]
        code_Bf, active_Bf = _Jump.apply(score_Bf, threshold_f, self.cfg.bandwidth)
        penalty = active_Bf.sum() if self.cfg.penalty == "l0" else (TANH_SLOPE * code_Bf).tanh().sum()
        extra = torch.zeros_like(penalty)
        if self.cfg.preact:
            extra = self.cfg.preact * (threshold_f - score_Bf).relu().sum()
        return Tile(
            partial_BN=code_Bf @ W_dec_fE,
            penalty=penalty,
            extra=extra,
            num_codes=active_Bf.detach().sum(),
            fired_f=active_Bf.detach().amax(0) > 0,
        )

    def sparsity_loss(self, penalty: Tensor, tokens: int) -> Tensor:
        """Return this rank's share of the penalty, which with a target is a squared deviation of L0."""
        target = self.cfg.target_l0
        if target is None:
            return super().sparsity_loss(penalty, tokens)
        rows = self.setting.rows
        count = self.consumers.sum(penalty.detach().clone())
        excess = count / (rows * target) - 1
        weight = self.coefficient(tokens) * rows * self.variance
        share = weight * excess.square() / self.consumers.size
        slope = weight * 2 * excess / (rows * target) * penalty
        return slope + (share - slope).detach()

    def unit(self) -> float:
        """Return E, as penalties count codes, or 1 with a target, where the unit is the variance."""
        return 1.0 if self.cfg.target_l0 is not None else float(self.E)


class _Jump(torch.autograd.Function):
    """The codes, and 1 where there is one; thresholds get the rectangle kernel's pseudo-gradient."""

    @staticmethod
    def forward(ctx: Any, score_Bf: Tensor, threshold_f: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        active_Bf = score_Bf > threshold_f
        ctx.save_for_backward(score_Bf, threshold_f)
        ctx.bandwidth = bandwidth
        return score_Bf * active_Bf, active_Bf.to(score_Bf.dtype)

    @staticmethod
    def backward(ctx: Any, grad_code_Bf: Tensor, grad_active_Bf: Tensor) -> tuple[Tensor | None, ...]:
        score_Bf, threshold_f = ctx.saved_tensors
        distance_Bf = score_Bf - threshold_f
        near_Bf = distance_Bf.abs() < ctx.bandwidth / 2
        pull_Bf = near_Bf * (threshold_f * grad_code_Bf + grad_active_Bf) / ctx.bandwidth
        return grad_code_Bf * (distance_Bf > 0), -pull_Bf.sum(0), None
