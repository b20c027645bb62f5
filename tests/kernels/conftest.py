"""Fixtures of the kernels' tests."""

import pytest

from tests.kernels.backends import DEVICE


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Without a GPU, Triton's programs run in its interpreter; see tests/conftest.py."""
    if DEVICE.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 16 pairs, so that a few pairs fill several."""
    from sae_dist.kernels import triton_plan, triton_sparse

    for module in (triton_plan, triton_sparse):
        monkeypatch.setattr(module, "WINDOW", 16)
