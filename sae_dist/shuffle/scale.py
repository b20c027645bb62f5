"""The shift and scale of activations, estimated before step 0 and then fixed."""

import torch
from torch import Tensor

from sae_dist.core.errors import DataError
from sae_dist.distributed.collectives import Axis


def mean_share(x_bD: Tensor, consumers: Axis) -> float:
    """Return the mean's share of the activations' squared norm: 0 if they are centred, at most 1.

    Letters: as core.types. All ranks get the same.
    """
    x_bD = x_bD.double()
    count = consumers.sum(x_bD.new_tensor([len(x_bD)]))
    mean_D = consumers.sum(x_bD.sum(0)) / count
    square = consumers.sum(x_bD.square().sum().reshape(1)) / count
    return float((mean_D.square().sum() / square.clamp(min=1e-300)).item())


def estimate(kind: str, x_bD: Tensor, consumers: Axis) -> tuple[Tensor, float]:
    """Return the vector to subtract from activations, fp64 [D], and the factor to multiply them by then.

    `sqrt_width`: the mean norm of the first batch becomes sqrt(D); `centred`: the same, after the first
    batch's mean is subtracted; `none`: 0 and 1. All ranks get the same: sums are fp64 over the consumer
    ranks, and rounded to 12 digits, so that the order of summation does not matter.

    Raises:
        DataError: the first batch is all zeros, or all alike and to be centred.
    """
    x_bD = x_bD.double()
    shift_D = torch.zeros_like(x_bD[0])
    if kind == "none":
        return shift_D, 1.0
    count = consumers.sum(x_bD.new_tensor([len(x_bD)]))
    if kind == "centred":
        mean_D = consumers.sum(x_bD.sum(0)) / count
        quantum = mean_D.abs().max().clamp(min=1e-300) * 1e-12
        shift_D = (mean_D / quantum).round() * quantum
    total = consumers.sum((x_bD - shift_D).norm(dim=1).sum().reshape(1))
    norm = (total / count).item()
    if norm <= 1e-9 * shift_D.norm().item():
        what = "all alike" if shift_D.any() else "all zeros"
        raise DataError(
            f"activations: the first batch is {what}, so it has no scale; look at the hook or the file"
        )
    return shift_D, float(f"{x_bD.shape[1] ** 0.5 / norm:.12e}")
