"""The Adam on the host of a GPU that is not there: what is moved, through what memory."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from sae_dist.config.sections import OptimConfig
from sae_dist.core import staging
from sae_dist.optim.offload import HostAdam
from sae_dist.train.announce import offload_in_words
from tests.helpers.fake_cuda import counting, fake_cuda
from tests.helpers.fake_device import OnDevice


class Descent:
    """A fake of DeepSpeed's CPUAdam that takes plain steps."""

    def __init__(self, groups, **_):
        self.param_groups, self.state = groups, {}

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data -= group["lr"] * parameter.grad


@pytest.fixture
def deepspeed(monkeypatch):
    fake = ModuleType("deepspeed.ops.adam")
    fake.DeepSpeedCPUAdam = Descent
    for name in ("deepspeed", "deepspeed.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


def test_weights_and_gradients_go_through_pinned_memory(deepspeed, monkeypatch):
    monkeypatch.setattr(staging, "STAGING_BYTES", 64)
    monkeypatch.setattr(staging.Staging.__init__, "__defaults__", (64,))
    W, b = torch.randn(9, 5), torch.randn(9)
    with fake_cuda():
        parameters = [Parameter(OnDevice(each.clone())) for each in (W, b)]
        adam = HostAdam(OptimConfig(kind="offload"), parameters, [1.0, 2.0])
        for parameter in parameters:
            parameter.data.mul_(2)  # as a constraint, after the last update
            parameter.grad = OnDevice(torch.ones(parameter.shape))
        kept = [host.grad for host in adam.host]
        with counting() as counts:
            adam.update(0.5, torch.zeros(()))
        assert all(host.grad is grad for host, grad in zip(adam.host, kept, strict=True))
    assert torch.equal(parameters[0].inner, 2 * W - 0.5) and torch.equal(parameters[1].inner, 2 * b - 1.0)
    assert dict(counts.copies) == dict(counts.reads) == {}


def test_what_a_step_moves_is_said():
    weights = [torch.empty(2**18, 256, device="meta"), torch.empty(2**18, device="meta")]
    run = SimpleNamespace(dictionary=SimpleNamespace(parameters=lambda: iter(weights)))
    assert offload_in_words([run, run]).startswith("optim=offload: each step moves 1.51 GiB between this GPU")
