"""The TopK dictionary: sharded equals unsharded, and both equal autograd of the dense formula."""

import pytest
import torch

from sae_dist.core.config import OptimConfig, SaeConfig, TopologyConfig
from sae_dist.dictionary.topk import TopKDictionary
from sae_dist.dist import runtime
from sae_dist.dist.mesh import Topology
from sae_dist.kernels import torch_backend
from sae_dist.optim.engine import Engine
from tests.ranks import run_ranks

ROWS, WIDTH, LATENTS, K, STEPS = 64, 12, 32, 4, 5
SAE = SaeConfig(kind="topk", num_latents=LATENTS, k=K, aux_k=6, aux_coefficient=0.5, dead_after=100)
OPTIM = OptimConfig(kind="adam", lr=0.01, clip=0.21)


def batch(step: int) -> torch.Tensor:
    """All rows of a step; with structure, so that the clip acts on some steps only."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.linspace(0.2, 3, WIDTH, dtype=torch.float64)
    )


def build(dp: int, shard: int) -> tuple[Topology, TopKDictionary, Engine]:
    cfg = TopologyConfig(dp=dp, shard=shard)
    place = runtime.Place(torch.distributed.get_rank(), dp * shard, 0, 1)
    topology = Topology(cfg, place, "cpu")
    model = TopKDictionary(
        SAE,
        width=WIDTH,
        rows=ROWS,
        seed=1,
        topology=topology,
        kernels=torch_backend,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    return topology, model, Engine(OPTIM, model, topology)


def train(dp: int, shard: int, break_reduction: bool = False) -> dict:
    """Five steps; losses, norms, last gradients, weights and dead counters, gathered over shards."""
    topology, model, engine = build(dp, shard)
    rank, world = topology.rank, topology.num_consumers
    model.start_from(batch(0)[rank::world])
    # Planted dead latents, spread over the shards: their bias keeps them out of the selection.
    first = topology.shard.rank * (LATENTS // shard)
    with torch.no_grad():
        planted = torch.arange(first, first + LATENTS // shard) % 3 == 0
        model.b_enc[planted] -= 50.0
    if break_reduction:
        topology.consumers.sum = lambda value: value  # the sum over ranks of b_dec's gradient
    found: dict = {"loss": [], "norm": [], "aux": []}
    for step in range(STEPS):
        terms = model.loss(batch(step)[rank::world], (step + 1) * ROWS, with_aux=step >= 2)
        norm, _ = engine.step(terms.total, lr=0.01)
        found["loss"].append(topology.consumers.sum(terms.total.detach().clone()).item())
        found["aux"].append(topology.consumers.sum(terms.parts.get("aux", norm * 0).clone()).item())
        found["norm"].append(norm.item())
    for name, (tensor, placement) in (model.state() | engine.state()).items():
        found[name] = topology.shard.gather_rows(tensor) if placement == "sharded" else tensor.clone()
    for name, placement in model.placements().items():
        grad = getattr(model, name).grad
        found[f"grad.{name}"] = topology.shard.gather_rows(grad) if placement == "sharded" else grad
    return found


@pytest.fixture(scope="module")
def alone() -> dict:
    return run_ranks(train, 1, 1, 1)[0]


@pytest.mark.parametrize("dp,shard", [(1, 2), (2, 1), (1, 4), (2, 2), (2, 4)])
def test_sharded_equals_unsharded(dp, shard, alone):
    for rank, found in enumerate(run_ranks(train, dp * shard, dp, shard)):
        for name, value in alone.items():
            torch.testing.assert_close(
                torch.as_tensor(found[name]),
                torch.as_tensor(value),
                rtol=1e-10,
                atol=1e-12,
                msg=lambda text, name=name, rank=rank: f"{name} on rank {rank}: {text}",
            )


def test_the_case_is_worth_comparing(alone):
    assert min(alone["norm"]) < OPTIM.clip < max(alone["norm"]), "the clip acts on some steps only"
    assert alone["aux"][0] == 0 and min(alone["aux"][2:]) > 1e-3, "AuxK acts once latents are dead"


@pytest.mark.parametrize("dp,shard", [(1, 2), (2, 1)])
def test_a_dropped_reduction_shows(dp, shard, alone):
    found = run_ranks(train, dp * shard, dp, shard, True)[0]
    # Ten times the bound of whole runs (test_world_size.py) and more.
    assert abs(found["loss"][-1] / alone["loss"][-1] - 1) > 1e-8


def dense_loss(model: TopKDictionary, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """The formula of `dictionary.topk`, dense, by autograd."""
    pre = (x - model.b_dec) @ model.W_enc.T + model.b_enc

    def codes(scores: torch.Tensor, k: int) -> torch.Tensor:
        kept = torch.zeros_like(scores).scatter(1, scores.topk(k, dim=1).indices, 1.0)
        return (kept * scores).relu()

    error = x - codes(pre, K) @ model.W_dec - model.b_dec
    loss = error.square().sum() / (len(x) * model.variance)
    num_dead = int(dead.sum())
    k_aux = min(SAE.aux_k, num_dead)
    masked = pre.masked_fill(~dead, -torch.inf)
    kept = torch.zeros_like(pre).scatter(1, masked.topk(k_aux, dim=1).indices, 1.0)
    e = error.detach()
    aux = (e - (kept * pre).relu() @ model.W_dec).square().sum() / e.square().sum()
    return loss + SAE.aux_coefficient * min(1.0, num_dead / SAE.aux_k) * aux


def gradients_against_autograd() -> dict:
    topology, model, _ = build(1, 1)
    model.start_from(batch(0))
    with torch.no_grad():
        model.b_enc += torch.linspace(-0.3, 0.3, LATENTS, dtype=torch.float64)
    tokens, x = 1000, batch(7)
    model.dead.last_fired_F[:] = tokens
    model.dead.last_fired_F[::4] = 0
    dead = model.dead.mask(tokens).clone()
    ours = model.loss(x, tokens, with_aux=True).total
    ours.backward()
    found = {name: getattr(model, name).grad.clone() for name in model.placements()} | {"loss": ours.detach()}
    model.zero_grad()
    dense = dense_loss(model, x, dead)
    dense.backward()
    want = {name: getattr(model, name).grad.clone() for name in model.placements()} | {"loss": dense.detach()}
    return {"found": found, "want": want}


def test_gradients_are_those_of_autograd():
    result = run_ranks(gradients_against_autograd, 1)[0]
    for name, want in result["want"].items():
        torch.testing.assert_close(result["found"][name], want, rtol=1e-10, atol=1e-13, msg=name)


def scaled_loss_moves_the_same(factor: float) -> torch.Tensor:
    _, model, engine = build(1, 1)
    model.start_from(batch(0))
    engine.cfg.clip = None
    for step in range(STEPS):
        engine.step(model.loss(batch(step), step, False).total * factor, lr=0.01)
    return model.W_enc.detach()


def test_adam_does_not_see_the_scale_of_the_loss():
    plain, tiny = (run_ranks(scaled_loss_moves_the_same, 1, factor)[0] for factor in (1.0, 1e-4))
    torch.testing.assert_close(plain, tiny, rtol=1e-9, atol=1e-10)


def non_finite_step() -> tuple:
    _, model, engine = build(1, 1)
    model.start_from(batch(0))
    engine.step(model.loss(batch(0), 1, False).total, lr=0.01)
    before = {name: tensor.clone() for name, (tensor, _) in (model.state() | engine.state()).items()}
    x = batch(1)
    x[3, 2] = torch.nan
    _, flag = engine.step(model.loss(x, 2, False).total, lr=0.01)
    after = {name: tensor for name, (tensor, _) in (model.state() | engine.state()).items()}
    moved = [n for n in before if n != "last_fired" and not torch.allclose(before[n], after[n])]
    return flag.item(), moved, engine.updates


def test_a_step_that_is_not_finite_moves_nothing():
    flag, moved, updates = run_ranks(non_finite_step, 1)[0]
    assert (flag, moved, updates) == (1.0, [], 1)
