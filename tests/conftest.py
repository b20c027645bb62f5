"""For every test: no network, no more threads than the machine has to share."""

import importlib.util
import os

import pytest
import torch

from tests.helpers.processor_time import ProcessorTime

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
torch.set_num_threads(1)

if importlib.util.find_spec("triton") and not torch.cuda.is_available():
    # Triton reads this while it is imported, which many libraries do; the processes that tests start must
    # not see it. The kernels themselves ask for it again: tests/kernels/backends.py.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton.language")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--saelens-python", help="the python of an environment with sae-lens")
    parser.addoption("--peer-python", help="pythons of the benchmark's peers: saelens=/path/bin/python,...")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ProcessorTime())
