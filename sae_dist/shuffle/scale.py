"""Scaling of activations, estimated before step 0 and frozen."""

import torch
from torch import Tensor

from sae_dist.core.errors import DataError
from sae_dist.dist.collectives import Axis


def estimate(kind: str, x_bD: Tensor, consumers: Axis) -> float:
    """The factor that activations are multiplied with.

    `sqrt_width`: mean norm of the first batch becomes sqrt(D); `none`: 1. Equal on all ranks: sums are
    fp64 over the consumer ranks, rounded to 12 digits, below which their order could show.

    Raises:
        DataError: the first batch is all zeros.
    """
    if kind == "none":
        return 1.0
    totals = torch.stack([x_bD.double().norm(dim=1).sum(), x_bD.new_tensor(len(x_bD)).double()])
    total, count = consumers.sum(totals).tolist()
    if total == 0:
        raise DataError(
            "activations: the first batch is all zeros, so it has no scale; look at the hook or the file"
        )
    return float(f"{x_bD.shape[1] ** 0.5 / (total / count):.12e}")
