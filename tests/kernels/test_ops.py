"""The Triton backend's operations as torch.compile sees them."""

import pytest
import torch

from tests.kernels.backends import DEVICE, backend, draw, needs_triton

pytestmark = needs_triton()


def arguments(name: str) -> tuple:
    """Small ones: three rows of two pairs each, four latents, width five."""
    latent, value = torch.tensor([0, 3, 1, 3, 2, 0], device=DEVICE), draw(0, 6, dtype=torch.float32)
    offsets, rows = torch.tensor([0, 2, 4], device=DEVICE), draw(1, 3, 5, dtype=torch.float32)
    W, b = draw(2, 4, 5, dtype=torch.float32), draw(3, 4, dtype=torch.float32)
    dead = torch.tensor([True, False, True, True], device=DEVICE)
    return {
        "decode": (latent, value, offsets, W),
        "latent_gradient": (latent, offsets, rows, W),
        "weight_gradient": (latent, value, offsets, rows, 4),
        "bias_gradient": (latent, value, 4),
        "encode_topk": (rows, W, b, 2),
        "encode_topk_dead": (rows, W, b, 2, dead, 4),
    }[name]


NAMES = ("decode", "latent_gradient", "weight_gradient", "bias_gradient", "encode_topk", "encode_topk_dead")


@pytest.mark.parametrize("name", NAMES)
def test_fakes_tell_the_truth(name):
    """torch's own check: schema, fake results, tracing with changing sizes."""
    backend("triton")
    torch.library.opcheck(getattr(torch.ops.sae_dist_triton, name).default, arguments(name))


def test_one_graph_calls_them():
    """Compiled without breaks, for other sizes too, with the same results."""
    kernels = backend("triton")

    def both(x, W, b):
        val, idx = kernels.encode_topk(x, W, b, 2)
        first = torch.arange(0, idx.numel(), 2, device=x.device)
        return kernels.decode(idx.flatten(), val.flatten().relu(), first, W)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=True)
    _, W, b, _ = arguments("encode_topk")
    for rows in (3, 4):
        x = draw(rows, rows, 5, dtype=torch.float32)
        assert torch.equal(compiled(x, W, b), both(x, W, b))
