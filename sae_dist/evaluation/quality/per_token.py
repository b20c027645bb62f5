"""The spread of errors over tokens, and the effect of few long activations, which a pooled FVU hides.

Letters: as core.types; N rows in all.
"""

from typing import Any

import torch
from torch import Tensor

from sae_dist.core.reconstruction import Fidelity

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
HIGH_NORM = 3.0
"""Rows whose input is longer than this multiple of the first batch's median norm are high-norm."""


class PerToken:
    """The errors of single rows.

    fvu_quantiles           of |y - y_hat|^2 over the mean of |y - mean|^2; its mean over rows is the FVU
    fvu_without_high_norm   FVU of the rows that are not high-norm, about their own mean
    high_norm_share         share of high-norm rows: longer than HIGH_NORM times the median norm of the first
                            batch. Rows beyond `tokens.max_norm_multiple` were left out before and are in
                            neither
    """

    def __init__(self, x_RD: Tensor, y_RE: Tensor):
        self.limit = HIGH_NORM * torch.linalg.vector_norm(x_RD, dim=1).median()
        self.ordinary = Fidelity(y_RE.mean(0))
        self.errors: list[Tensor] = []
        self.high = 0

    def add(self, x_RD: Tensor, y_RE: Tensor, y_hat_RE: Tensor) -> None:
        """Add rows; 4 bytes of each are kept on the host."""
        self.errors.append((y_RE - y_hat_RE).square().sum(1).float().cpu())
        ordinary_R = torch.linalg.vector_norm(x_RD, dim=1) <= self.limit
        self.high += int((~ordinary_R).sum())
        self.ordinary.add(y_RE[ordinary_R], y_hat_RE[ordinary_R])

    def numbers(self, deviation: float) -> dict[str, Any]:
        """Return the numbers listed at the class.

        Args:
            deviation: mean squared deviation of a row from the mean of all.
        """
        error_N = torch.cat(self.errors).double().sort().values / deviation
        places = [round(q * (len(error_N) - 1)) for q in QUANTILES]
        quantiles = {f"{q:g}": float(error_N[place]) for q, place in zip(QUANTILES, places, strict=True)}
        result: dict[str, Any] = {
            "fvu_quantiles": quantiles,
            "fvu_without_high_norm": None,
            "high_norm_share": self.high / len(error_N),
        }
        if float(self.ordinary.deviations().sum()) > 0:
            result["fvu_without_high_norm"] = self.ordinary.numbers()["fvu"]
        else:
            result["fvu_without_high_norm_reason"] = "no two rows of ordinary length differ"
        return result
