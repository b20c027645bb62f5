"""Whole training steps on the Triton kernels against the same steps on the torch ones."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sae_dist.config.kinds import SELECTED
from sae_dist.config.run import RunConfig
from sae_dist.config.sections import OptimConfig, SaeConfig, TopologyConfig
from sae_dist.core.place import place
from sae_dist.distributed import runtime
from sae_dist.distributed.mesh import Topology
from sae_dist.train.build import build_dictionary, build_optimizer
from tests.kernels.backends import DEVICE, draw, needs_triton

ROWS, WIDTH, LATENTS, STEPS = 3, 10, 40, 2
pytestmark = needs_triton()


@pytest.fixture(scope="module")
def topology():
    """Of one rank."""
    runtime.start(place(), DEVICE.type, 600.0)
    yield Topology(TopologyConfig(), place(), DEVICE.type)
    runtime.finish()


def trained(topology, kernels: str, kind: str, optim: str) -> dict[str, torch.Tensor]:
    """Parameters, losses and gradient norms of a few steps with AuxK, all latents dead at first."""
    settings = OmegaConf.load(Path(__file__).parents[2] / "conf" / "sae" / f"{kind}.yaml")
    small = {"kind": kind, "num_latents": LATENTS, "k": 3, "aux_k": 5, "dead_after": 0}
    cfg = RunConfig(
        batch=ROWS,
        train_tokens=ROWS * STEPS,
        precision="float64",
        kernels=kernels,
        sae=SaeConfig(**(dict(settings) | small)),
        optim=OptimConfig(kind=optim),
    )
    model = build_dictionary(cfg, (WIDTH,), topology, DEVICE)
    engine = build_optimizer(cfg, model, topology)
    found = {}
    for step in range(STEPS):
        terms = model.loss(draw(step, ROWS, WIDTH), (step + 1) * ROWS, with_aux=True)
        found[f"loss {step}"] = terms.total.detach()
        found[f"norm {step}"] = engine.step(terms.total, 1e-2)[0]
    return found | {name: getattr(model, name).detach() for name in model.placements()}


@pytest.mark.parametrize("optim", ["adam", "row_adam"])
@pytest.mark.parametrize("kind", SELECTED)
def test_equals_the_torch_kernels(topology, kind, optim):
    got, want = (trained(topology, kernels, kind, optim) for kernels in ("triton", "torch"))
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11, msg=name)
