"""The measured product: of random numbers, and on a GPU timed by the GPU, over launches without a gap."""

import torch

from sae_dist.metrics import gemm
from sae_dist.metrics.gemm import REPEATS, gemm_rate
from tests.helpers.fake_cuda import fake_cuda
from tests.helpers.fake_device import CUDA, HOST


def test_a_gpu_times_many_launches_by_itself(monkeypatch):
    monkeypatch.setitem(gemm.SIZES, "cuda", 64)
    multiply, seen, waits = torch.mm, [], []

    class Timed:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            seen.append("mark")

        def synchronize(self):
            waits.append(len(seen))

        def elapsed_time(self, last):
            return 2.0 * REPEATS

    def counted(a, b, out):
        assert not torch.equal(a.inner, torch.ones_like(a.inner)) and float(a.inner.std()) > 0.5
        seen.append("product")
        return multiply(a, b, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    with fake_cuda(Event=Timed, synchronize=lambda device: waits.append(-1)):
        rate = gemm_rate(CUDA, (torch.float32,))
    assert seen == ["mark", *["product"] * REPEATS, "mark"] and waits == [len(seen)]
    assert rate == 2 * 64**3 / 0.002


def test_a_gpus_product_is_large():
    assert gemm.SIZES["cuda"] == 8192


def test_a_cpu_takes_the_best_of_many(monkeypatch):
    monkeypatch.setitem(gemm.SIZES, "cpu", 32)
    assert gemm_rate(HOST, (torch.float32, torch.float64)) > 0
