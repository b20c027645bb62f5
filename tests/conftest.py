"""For every test: no network, no more threads than the machine has to share."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--saelens-python", help="the python of an environment with sae-lens")
    parser.addoption("--peer-python", help="pythons of the benchmark's peers: saelens=/path/bin/python,...")
