"""For every test: no network, no more threads than the machine has to share, and its processor time."""

import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sae_dist.core import progress
from tests.helpers.order import longest_first
from tests.helpers.processor_time import ProcessorTime
from tests.helpers.small_llm import save_small_llm

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# Processes that tests start: threads that wait for each other would spin on cores that other tests need.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Tests count the lines of an answer: on a slow machine none says meanwhile that work goes on.
progress.LINE_EVERY_S = 3600.0

if importlib.util.find_spec("triton") and not torch.cuda.is_available():
    # Triton reads this while it is imported, which many libraries do; the processes that tests start must
    # not see it. The kernels themselves ask for it again: tests/kernels/backends.py.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton.language")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--saelens-python", help="the python of an environment with sae-lens")
    parser.addoption("--peer-python", help="pythons of the benchmark's peers: saelens=/path/bin/python,...")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ProcessorTime())
    os.environ["TORCH_EXTENSIONS_DIR"] = str(config.cache.mkdir("torch_extensions"))


def settings_of_the_process() -> dict[str, object]:
    """What a test that follows in this process would find changed."""
    return {
        "precision of products": torch.get_float32_matmul_precision(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "working directory": os.getcwd(),
    }


@pytest.fixture(autouse=True)
def left_as_found() -> Iterator[None]:
    """Fail a test that leaves a setting of the process changed: which others it breaks is chance."""
    before = settings_of_the_process()
    yield
    assert settings_of_the_process() == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the tests of a file share, where they give commands; in it are `small_llm`'s files."""
    return save_small_llm(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="session")
def compiled_adam() -> None:
    """DeepSpeed's CPUAdam, compiled once for this checkout: minutes.

    A compiler that was killed leaves torch's lock, and others wait for it for ever. The lock held here ends
    with its process: whoever has it knows that nobody compiles.
    """
    extensions = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    with open(extensions / "held", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for left_behind in extensions.glob("*/*/lock"):
            left_behind.unlink()
        load = "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()"
        subprocess.run([sys.executable, "-c", load], check=True, capture_output=True)
