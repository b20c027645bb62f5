"""Copies from the host to a GPU for which neither waits.

A plain copy to a GPU blocks the host until the GPU has done all that was asked of it before: then the host
can never run a step ahead. From pinned memory it is one more entry in the GPU's queue.
"""

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host to a GPU through pinned memory, without a wait.

    The pinned memory is that of torch's cache, which gives it to others only once it has been read.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
