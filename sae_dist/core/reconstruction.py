"""The quality of a reconstruction, from sums over rows that are added up over batches, and over ranks.

Letters: as core.types.
"""

from typing import Any

import torch
from torch import Tensor

DENSE = {"dense_fraction_1": 0.01, "dense_fraction_10": 0.1}
"""Latents that fire on more than this share of the rows."""
SCALARS = 5


class Fidelity:
    """The sums of rows y and reconstructions y_hat, in float64, about a shift near the mean.

    fvu                 sum |y - y_hat|^2 / sum |y - mean|^2, over all rows and dimensions
    explained_variance  1 - the same ratio per dimension, mean over dimensions that vary
    l2_ratio            mean of |y_hat| / |y| over rows that are not zero (SAEBench, arXiv 2503.09532)
    relative_bias       sum |y_hat|^2 / sum y . y_hat: the factor by which the reconstruction is best divided
                        (Rajamanoharan et al. 2024, arXiv 2404.16014)

    `sums` holds everything, so that ranks with the same shift may add theirs.
    """

    def __init__(self, shift_E: Tensor):
        self.shift_E = shift_E
        self.sums = shift_E.new_zeros(3 * len(shift_E) + SCALARS, dtype=torch.float64)

    def add(self, y_RE: Tensor, y_hat_RE: Tensor) -> None:
        """Add rows and their reconstructions to the sums."""
        centred_RE = y_RE - self.shift_E
        norm_R = torch.linalg.vector_norm(y_RE, dim=1)
        norm_hat_R = torch.linalg.vector_norm(y_hat_RE, dim=1)
        some_R = norm_R > 0
        ratio_R = torch.where(some_R, norm_hat_R / torch.where(some_R, norm_R, 1), 0)
        per_dimension = [centred_RE, centred_RE.square(), (y_RE - y_hat_RE).square()]
        scalars = [
            some_R.new_tensor([len(y_RE)], dtype=torch.float64).squeeze(),
            some_R.sum(dtype=torch.float64),
            ratio_R.sum(dtype=torch.float64),
            norm_hat_R.double().square().sum(),
            (y_RE * y_hat_RE).sum(dtype=torch.float64),
        ]
        parts = [each.sum(0, dtype=torch.float64) for each in per_dimension]
        self.sums += torch.cat([*parts, torch.stack(scalars)])

    def deviations(self) -> Tensor:
        """Return the sum of squared deviations from the mean of the rows, per dimension [E]."""
        E = len(self.shift_E)
        rows = self.sums[3 * E]
        return self.sums[E : 2 * E] - self.sums[:E].square() / rows

    def numbers(self) -> dict[str, Any]:
        """Return the four numbers; None with a reason where one is not defined. Rows must differ."""
        E = len(self.shift_E)
        deviations_E, error_E = self.deviations(), self.sums[2 * E : 3 * E]
        varies_E = deviations_E > 0
        _, nonzero, ratios, squares, product = self.sums[3 * E :].tolist()
        result: dict[str, Any] = {
            "fvu": float(error_E.sum() / deviations_E.sum()),
            "explained_variance": float((1 - error_E / deviations_E)[varies_E].mean()),
            "l2_ratio": ratios / nonzero if nonzero else None,
            "relative_bias": squares / product if product > 0 else None,
        }
        if not nonzero:
            result["l2_ratio_reason"] = "every activation is zero"
        if product <= 0:
            result["relative_bias_reason"] = "reconstructions do not point where the activations do"
        return result


def firing_counts(fired_F: Tensor, rows: int) -> Tensor:
    """Count the latents that never fired, and those above each share of DENSE: int64, [1 + 2].

    Args:
        fired_F: rows on which each latent fired.
    """
    dense = [(fired_F > share * rows).sum() for share in DENSE.values()]
    return torch.stack([(fired_F == 0).sum(), *dense])


def firing_shares(counts: Tensor, latents: int) -> dict[str, float]:
    """Return `silent_fraction` and the shares of DENSE, from `firing_counts` summed over shards."""
    shares = [int(each) / latents for each in counts]
    return dict(zip(("silent_fraction", *DENSE), shares, strict=True))
