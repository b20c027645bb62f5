"""Backends under test, and where they run: on a GPU if there is one, else Triton's interpreter on the CPU."""

import importlib.metadata
import importlib.util
from types import ModuleType

import numpy as np
import pytest
import torch

from sae_dist.kernels import torch_backend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ("torch", "triton")


def missing() -> str | None:
    """Why the Triton kernels cannot run here."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    found = importlib.metadata.version("triton")
    version = tuple(int(part) for part in found.split(".")[:2])
    if DEVICE.type == "cpu" and version < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return f"the interpreter of triton {found} does not work with numpy {np.__version__}"
    return None


def load() -> None:
    """Import the kernels; without a GPU for the interpreter, which only their import asks for."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        for name in ("triton_backend", "triton_update"):
            importlib.import_module(f"sae_dist.kernels.{name}")


if missing() is None:
    load()


def needs_triton() -> pytest.MarkDecorator:
    """Skips a test, or with `pytestmark` a file, where Triton cannot run."""
    return pytest.mark.skipif(missing() is not None, reason=str(missing()))


def backend(name: str) -> ModuleType:
    """The module of a backend; skips the test where it cannot run."""
    if name == "torch":
        return torch_backend
    if missing() is not None:
        pytest.skip(str(missing()))
    return importlib.import_module("sae_dist.kernels.triton_backend")


def draw(
    seed: int, *shape: int, dtype: torch.dtype = torch.float64, levels: int | None = None
) -> torch.Tensor:
    """Random numbers; with `levels`, few distinct values, so that ties are everywhere."""
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = values if levels is None else (values * levels).round() / levels
    return values.to(DEVICE, dtype)
