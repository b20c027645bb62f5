"""The choice of kernels: a backend that is asked for and missing is an error, never a silent fallback."""

import importlib
from types import ModuleType

from sae_dist.config.triton import triton_problem
from sae_dist.core.errors import ConfigError
from sae_dist.kernels import reference, torch_backend
from sae_dist.kernels.row_update import RowUpdate, TiledUpdate


def choose_kernels(name: str) -> ModuleType:
    """Return the backend called `name`: a module with the functions of `reference`.

    Raises:
        ConfigError: there is no such backend, or it cannot run on this machine.
    """
    if name == "triton":
        _check_triton()
        return importlib.import_module("sae_dist.kernels.triton_backend")
    backends = {"torch": torch_backend, "reference": reference}
    if name not in backends:
        raise ConfigError(f"kernels={name} is not available here; choose triton, torch or reference")
    return backends[name]


def choose_row_update(name: str) -> type[RowUpdate]:
    """Return the row update of the backend called `name`, which `optim.row_adam` uses.

    Raises:
        ConfigError: see `choose_kernels`.
    """
    if name == "triton":
        _check_triton()
        return importlib.import_module("sae_dist.kernels.triton_update").FusedUpdate
    return TiledUpdate


def _check_triton() -> None:
    problem = triton_problem()
    if problem is not None:
        raise ConfigError(problem)
