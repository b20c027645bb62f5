"""Memory of the TopK step: no operation makes a [batch, latents] tensor (invariant I5)."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_dist.core.config import SaeConfig, TopologyConfig
from sae_dist.dictionary.topk import TopKDictionary
from sae_dist.dist import runtime
from sae_dist.dist.mesh import Topology
from sae_dist.kernels import reference, torch_backend
from tests.ranks import run_ranks

ROWS, WIDTH = 4096, 16


class LargestOutput(TorchDispatchMode):
    """Remembers the most elements that any operation put out."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def largest_output_of_a_step(latents: int, kernels_name: str) -> int:
    topology = Topology(TopologyConfig(), runtime.Place(0, 1, 0, 1), "cpu")
    cfg = SaeConfig(kind="topk", num_latents=latents, k=4, aux_k=8, dead_after=0)
    model = TopKDictionary(
        cfg,
        width=WIDTH,
        rows=ROWS,
        seed=0,
        topology=topology,
        kernels={"torch": torch_backend, "reference": reference}[kernels_name],
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    # Latents fire at random, those of this step aside all are dead: AuxK chooses among nearly all.
    with LargestOutput() as seen:
        model.loss(x, 1, with_aux=True).total.backward()
    return seen.largest


def test_no_output_is_near_batch_times_latents():
    for latents in (65536, 131072):
        largest = run_ranks(largest_output_of_a_step, 1, latents, "torch")[0]
        assert largest < ROWS * latents / 16


def test_the_test_sees_a_dense_step():
    latents = 8192
    assert run_ranks(largest_output_of_a_step, 1, latents, "reference")[0] >= ROWS * latents


def peak_bytes(latents: int) -> int:
    """Growth of this fresh process's peak resident memory over one step, without what grows with weights."""
    import resource

    largest_output_of_a_step(256, "torch")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    largest_output_of_a_step(latents, "torch")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return after - before


def test_peak_memory_grows_with_weights_only():
    wide = run_ranks(peak_bytes, 1, 8 * 65536)[0]
    # Weights, gradients, the draw of the initial rows in fp64 and its norm: a few copies of [F, D].
    assert wide < 8 * 65536 * WIDTH * 4 * 12 + 2**28
    assert wide < ROWS * 8 * 65536 * 4 / 4, "a quarter of one dense [batch, latents] tensor"
