"""The choice of kernels: demanded and missing is one line, and never another backend."""

import pytest
import torch

from sae_dist.config import triton as core_triton
from sae_dist.core.errors import ConfigError
from sae_dist.kernels.choose import choose_kernels, choose_row_update
from sae_dist.kernels.row_update import TiledUpdate
from tests.kernels.backends import BACKENDS, backend


@pytest.fixture
def machine(monkeypatch):
    """A machine with the package triton and a GPU of some compute capability; without either on demand."""

    def pretend(*, installed: bool = True, capability: tuple[int, int] | None = (9, 0)) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(core_triton, "find_spec", lambda name: object() if installed else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return pretend


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"installed": False}, "needs the package triton, which is not installed; use kernels=torch"),
        ({"capability": None}, "needs an NVIDIA GPU, and torch finds none here; use kernels=torch"),
        ({"capability": (7, 5)}, "compute capability 8.0 or more; use kernels=torch"),
    ],
)
def test_demanded_and_missing_is_an_error(machine, given, says):
    machine(**given)
    for choose in (choose_kernels, choose_row_update):
        with pytest.raises(ConfigError, match=says):
            choose("triton")


def test_what_runs_where(machine):
    machine()
    assert core_triton.triton_problem("cuda") is None
    assert "not with device=cpu" in core_triton.triton_problem("cpu")


def test_an_unknown_backend_is_named():
    with pytest.raises(ConfigError, match="kernels=numpy .* choose triton, torch or reference"):
        choose_kernels("numpy")
    assert choose_row_update("torch") is TiledUpdate


@pytest.mark.parametrize("name", BACKENDS)
def test_every_operation_is_there(name):
    operations = {
        "topk_rows",
        "encode_topk",
        "encode_topk_dead",
        "decode",
        "latent_gradient",
        "weight_gradient",
        "bias_gradient",
    }
    for module in (backend(name), choose_kernels("reference")):
        assert operations <= set(vars(module))
