"""Optimizers against torch's dense Adam: row-lazy with beta1 = 0, and DeepSpeed's on the host."""

from dataclasses import replace

import pytest
import torch

from sae_dist.config.sections import OptimConfig, TopologyConfig
from sae_dist.core.place import Place
from sae_dist.core.types import RowTerm
from sae_dist.distributed.mesh import Topology
from sae_dist.optim.engine import Engine
from sae_dist.optim.offload import HostAdam
from sae_dist.optim.row_adam import RowAdam
from tests.helpers.ranks import run_ranks

LATENTS, WIDTH, STEPS = 40, 6, 300
CFG = OptimConfig(kind="row_adam", clip=None, beta1=0.0, beta2=0.99)


class Toy(torch.nn.Module):
    """Rows of a dictionary whose gradients are given: random pairs of latents and rows."""

    unit_rows = ("W_dec",)
    lr_groups = {"W_enc": "encoder", "b_enc": "bias", "b_dec": "bias"}

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(LATENTS, WIDTH, generator=generator, dtype=dtype)
        self.W_enc = torch.nn.Parameter(rows.clone())
        self.b_enc = torch.nn.Parameter(torch.zeros(LATENTS, dtype=dtype))
        self.W_dec = torch.nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
        self.b_dec = torch.nn.Parameter(torch.zeros(WIDTH, dtype=dtype))
        self.row_terms = None

    def placements(self):
        return {"W_enc": "sharded", "b_enc": "sharded", "W_dec": "sharded", "b_dec": "replicated"}

    def total(self, step: int) -> torch.Tensor:
        """A scalar whose gradient is that of the step's pairs; most latents are touched by no step."""
        generator = torch.Generator().manual_seed(1000 + step)
        dtype = self.W_enc.dtype
        total = (self.b_dec * torch.randn(WIDTH, generator=generator, dtype=dtype)).sum()
        for name in ("W_enc", "W_dec"):
            pairs = int(torch.randint(1, 12, (), generator=generator))
            latent = (torch.rand(pairs, generator=generator) ** 3 * LATENTS).long()
            coeff = torch.randn(pairs, generator=generator, dtype=dtype)
            rows = torch.randn(4, WIDTH, generator=generator, dtype=dtype)
            row = torch.randint(0, 4, (pairs,), generator=generator).sort().values
            offsets = torch.searchsorted(row, torch.arange(4))
            if self.row_terms is not None:
                self.row_terms[name].append(RowTerm(latent, coeff, offsets, rows))
                continue
            total = total + (getattr(self, name)[latent] * coeff[:, None] * rows[row]).sum()
            if name == "W_enc":
                total = total + (self.b_enc[latent] * coeff).sum()
        return total


def trained(kind: str, cfg: OptimConfig, dtype: torch.dtype, steps: int) -> dict[str, torch.Tensor]:
    topology = Topology(TopologyConfig(), Place(0, 1, 0, 1), "cpu")
    model = Toy(dtype)
    engine = {
        "row_adam": lambda: RowAdam(cfg, model, topology),
        "adam": lambda: Engine(cfg, model, topology),
        "offload": lambda: Engine(cfg, model, topology, HostAdam),
    }[kind]()
    norms = [engine.step(model.total(step), lr=0.02 / (1 + step / 100))[0] for step in range(steps)]
    found = {name: getattr(model, name).detach() for name in model.placements()}
    return found | {"norms": torch.stack(norms)}


def test_lazy_updates_are_dense_ones_without_momentum():
    """Exactly Adam(0, beta2), in fp64 over 300 steps, weights and norms."""
    lazy, dense = (run_ranks(trained, 1, kind, CFG, torch.float64, STEPS)[0] for kind in ("row_adam", "adam"))
    for name, value in dense.items():
        torch.testing.assert_close(lazy[name], value, rtol=1e-11, atol=1e-13, msg=name)


def test_with_momentum_they_are_not():
    cfg = replace(CFG, beta1=0.9)
    lazy, dense = (run_ranks(trained, 1, kind, cfg, torch.float64, STEPS)[0] for kind in ("row_adam", "adam"))
    assert (lazy["W_enc"] - dense["W_enc"]).abs().max() > 1e-3


def test_the_clip_is_the_same():
    cfg = replace(CFG, clip=6.0)
    lazy, dense = (run_ranks(trained, 1, kind, cfg, torch.float64, 50)[0] for kind in ("row_adam", "adam"))
    assert dense["norms"].max() > 6 > dense["norms"].min()
    for name, value in dense.items():
        torch.testing.assert_close(lazy[name], value, rtol=1e-11, atol=1e-13, msg=name)


@pytest.mark.parametrize("kind", ["adam", "row_adam", pytest.param("offload", marks=pytest.mark.long)])
def test_encoder_and_biases_have_learning_rates_of_their_own(kind, request):
    """Adam's first update moves every element with a gradient by the learning rate."""
    if kind == "offload":
        request.getfixturevalue("compiled_adam")
    cfg = replace(CFG, encoder_lr=0.25, bias_lr=3.0)
    before = Toy(torch.float32)
    after = run_ranks(trained, 1, kind, cfg, torch.float32, 1)[0]
    for name, expected in {"W_enc": 0.005, "b_enc": 0.06, "b_dec": 0.06}.items():
        moved = (after[name] - getattr(before, name).detach()).abs()
        torch.testing.assert_close(
            moved[moved > 0], torch.full_like(moved[moved > 0], expected), rtol=1e-3, atol=0
        )


@pytest.mark.long
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_offload_is_adam(beta1, compiled_adam):
    cfg = replace(CFG, beta1=beta1, clip=3.0)
    host, dense = (run_ranks(trained, 1, kind, cfg, torch.float32, 60)[0] for kind in ("offload", "adam"))
    for name, value in dense.items():
        torch.testing.assert_close(host[name], value, rtol=1e-4, atol=1e-6, msg=name)
