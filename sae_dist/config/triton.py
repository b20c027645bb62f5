"""Tells whether this machine can run the Triton kernels, without importing them."""

import os
import sys
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec

OLDEST = (8, 0)
"""The first compute capability with bfloat16 matrix products."""


def triton_problem(device: str = "cuda") -> str | None:
    """Say why kernels=triton cannot run on `device` (auto, cpu or cuda) here; None if it can.

    With TRITON_INTERPRET=1, a variable of Triton's own, the kernels run anywhere, very slowly, for tests.
    """
    if find_spec("triton") is None:
        return (
            "kernels=triton needs the package triton, which is not installed; use kernels=torch, or "
            "pip install 'sae-dist[gpu]'"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device == "cpu":
        return "kernels=triton runs on NVIDIA GPUs, not with device=cpu; use kernels=torch"
    if not cuda_is_here():
        return "kernels=triton needs an NVIDIA GPU, and torch finds none here; use kernels=torch"
    import torch

    if torch.cuda.get_device_capability() < OLDEST:
        return "kernels=triton needs a GPU of compute capability 8.0 or more; use kernels=torch"
    return None


def cuda_is_here() -> bool:
    """Return whether torch finds a CUDA device; a build of torch for CPUs alone is not imported for that."""
    if "torch" not in sys.modules:
        with suppress(metadata.PackageNotFoundError):
            if metadata.version("torch").endswith("+cpu"):
                return False
    import torch

    return torch.cuda.is_available()
