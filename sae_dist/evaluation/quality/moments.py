"""Sums over rows that give exact moments and two baselines, in one streaming pass.

Letters: as core.types.
"""

import torch
from torch import Tensor

# Directions of the input with less than this share of its largest variance are not used.
NO_VARIANCE = 1e-12


class Moments:
    """The sum and squares about a shift near the mean, in fp64, so that nothing cancels."""

    def __init__(self, shift_D: Tensor, with_covariance: bool):
        D = len(shift_D)
        self.shift_D, self.rows = shift_D, 0
        self.sum_D = shift_D.new_zeros(D, dtype=torch.float64)
        self.square_D = torch.zeros_like(self.sum_D)
        self.product_DD = shift_D.new_zeros(D, D, dtype=torch.float64) if with_covariance else None

    def add(self, x_RD: Tensor) -> None:
        y_RD = x_RD - self.shift_D
        self.rows += len(y_RD)
        self.sum_D += y_RD.sum(0, dtype=torch.float64)
        self.square_D += y_RD.square().sum(0, dtype=torch.float64)
        if self.product_DD is not None:
            self.product_DD += y_RD.T @ y_RD

    def mean(self) -> Tensor:
        """Return the mean of the rows [D], fp64."""
        return self.shift_D + self.sum_D / self.rows

    def deviations(self) -> Tensor:
        """Return the sum of squared deviations from the mean, per dimension [D]."""
        return self.square_D - self.sum_D.square() / self.rows

    def pca_fvu(self, k: int) -> float:
        """Return the FVU of these very rows projected on their own first k principal components."""
        assert self.product_DD is not None
        scatter_DD = self.product_DD - torch.outer(self.sum_D, self.sum_D) / self.rows
        ascending_D = torch.linalg.eigvalsh(scatter_DD).clamp(min=0)
        return float(ascending_D[: max(len(ascending_D) - k, 0)].sum() / ascending_D.sum())


class LeastSquares:
    """The best affine map from input to target over the rows seen, from sums of products in fp64."""

    def __init__(self, shift_D: Tensor, shift_E: Tensor):
        D, width = len(shift_D), len(shift_D) + len(shift_E)
        self.shift, self.D, self.rows = torch.cat([shift_D, shift_E]).double(), D, 0
        self.sums = self.shift.new_zeros(width)
        self.products_D = self.shift.new_zeros(D, width)
        self.square_E = self.shift.new_zeros(width - D)

    def add(self, x_RD: Tensor, y_RE: Tensor) -> None:
        rows = torch.cat([x_RD, y_RE], 1).double() - self.shift
        self.rows += len(rows)
        self.sums += rows.sum(0)
        self.products_D += rows[:, : self.D].T @ rows
        self.square_E += rows[:, self.D :].square().sum(0)

    def fvu(self) -> float:
        """Return the FVU of the target under that map: the share of variance the input does not explain."""
        about_mean = self.products_D - torch.outer(self.sums[: self.D], self.sums) / self.rows
        deviations = self.square_E - self.sums[self.D :].square() / self.rows
        variance_D, directions_DD = torch.linalg.eigh(about_mean[:, : self.D])
        shared_DE = directions_DD.T @ about_mean[:, self.D :]
        varies_D = variance_D > NO_VARIANCE * variance_D[-1]
        explained = (shared_DE[varies_D].square() / variance_D[varies_D, None]).sum()
        return float((1 - explained / deviations.sum()).clamp(min=0))
