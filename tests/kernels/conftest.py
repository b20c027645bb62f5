"""Fixtures of the kernels' tests."""

import pytest


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 16 pairs, so that a few pairs fill several."""
    from sae_dist.kernels import triton_plan, triton_sparse

    for module in (triton_plan, triton_sparse):
        monkeypatch.setattr(module, "WINDOW", 16)
