"""A small dictionary of every kind, built and trained the same way under any (dp, shard)."""

from dataclasses import replace

import torch

from sae_dist.config.run import RunConfig
from sae_dist.config.sections import OptimConfig, SaeConfig, TopologyConfig
from sae_dist.core.place import Place
from sae_dist.distributed.mesh import Topology
from sae_dist.train.build import build_dictionary, build_optimizer

ROWS, WIDTH, TARGET, LATENTS, K, STEPS = 64, 12, 10, 32, 4, 5
BASE = SaeConfig(
    kind="topk", num_latents=LATENTS, k=K, aux_k=6, aux_coefficient=0.5, dead_after=100, encoder_scale=0.577
)
KINDS = {
    "topk": BASE,
    "batchtopk": replace(BASE, kind="batchtopk", threshold_beta=0.5),
    "matryoshka": replace(BASE, kind="matryoshka", threshold_beta=0.5, prefixes=[0.125, 0.5, 1.0]),
    "relu": replace(BASE, kind="relu", sparsity=0.3, sparsity_warmup=0.5, l1_weighting="decoder_norm"),
    "relu plain": replace(BASE, kind="relu", sparsity=0.3, sparsity_warmup=0.5, l1_weighting="none"),
    "jumprelu": replace(
        BASE, kind="jumprelu", sparsity=0.7, sparsity_warmup=0.0, penalty="l0", target_l0=4.0,
        bandwidth=0.7, threshold=0.4, preact=0.01,
    ),
    "jumprelu tanh": replace(
        BASE, kind="jumprelu", sparsity=0.3, sparsity_warmup=0.0, penalty="tanh", bandwidth=0.7,
        threshold=0.4, preact=0.0,
    ),
    "gated": replace(BASE, kind="gated", sparsity=0.3, sparsity_warmup=0.0),
}  # fmt: skip
SPARSE = ("topk", "batchtopk", "matryoshka")
CLIP = {False: 0.21, True: 0.17}
"""Of an autoencoder and of a transcoder: within the norms of the five steps."""
ADAM = OptimConfig(kind="adam", lr=0.01, encoder_lr=0.5, bias_lr=3.0)
OPTIMIZERS = {
    "adam": ADAM,
    "row_adam": replace(ADAM, kind="row_adam"),
    "row_adam, no clip, beta1 0": replace(ADAM, kind="row_adam", clip=None, beta1=0.0),
}


def batch(step: int, columns: int) -> torch.Tensor:
    """All rows of a step; with structure, so that the clip acts on some steps only."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, columns, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.linspace(0.2, 3, columns, dtype=torch.float64)
    )


def build(kind: str, optim: str, dp: int, shard: int, transcoder: bool):
    """Topology, dictionary and optimizer on this rank."""
    topology_cfg, optim_cfg = TopologyConfig(dp=dp, shard=shard), OPTIMIZERS[optim]
    if optim_cfg.clip is not None:
        optim_cfg = replace(optim_cfg, clip=CLIP[transcoder])
    cfg = RunConfig(
        batch=ROWS, train_tokens=ROWS * STEPS, seed=1, precision="float64", kernels="torch",
        sae=replace(KINDS[kind], skip=transcoder), optim=optim_cfg, topology=topology_cfg,
    )  # fmt: skip
    place = Place(torch.distributed.get_rank(), dp * shard, 0, 1)
    topology = Topology(topology_cfg, place, "cpu")
    widths = (WIDTH, TARGET) if transcoder else (WIDTH,)
    model = build_dictionary(cfg, widths, topology, torch.device("cpu"))
    return topology, model, build_optimizer(cfg, model, topology)


def plant(model) -> None:
    """Dead latents, spread over the shards, which AuxK can still move: scores above zero, but never selected.

    Kinds without a selection have no AuxK; their dead latents are pushed far below zero.
    """
    planted_F = torch.arange(model.first, model.first + model.F) % 3 == 0
    with torch.no_grad():
        if model.cfg.kind in SPARSE:
            model.W_enc[planted_F] *= 0.1
            model.b_enc[planted_F] *= 0.1
            return
        for name in ("b_enc", "b_gate"):
            if name in model.sharded:
                getattr(model, name)[planted_F] -= 50.0


def train(
    kind: str,
    optim: str,
    dp: int,
    shard: int,
    transcoder: bool = False,
    drop: str | None = None,
    most_dead: int | None = None,
) -> dict:
    """Five steps; losses, norms, last gradients, weights, moments and dead counters, gathered.

    `drop` names a reduction to leave out, to see that it shows. AuxK goes by pairs, or with `most_dead` by
    products over so many columns.
    """
    topology, model, engine = build(kind, optim, dp, shard, transcoder)
    rank, world = topology.rank, topology.num_consumers
    columns = sum(model.setting.widths)
    # Not a batch that is trained on: Adam would scale up gradients that are zero but for rounding.
    model.start_from(batch(99, columns)[rank::world])
    plant(model)
    if drop == "consumers.sum":
        topology.consumers.sum = lambda value: value
    if drop == "dead.max":
        model.dp.max = lambda value: value
    found: dict = {"loss": [], "norm": [], "aux": [], "codes": []}
    for step in range(STEPS):
        terms = model.loss(batch(step, columns)[rank::world], (step + 1) * ROWS, step >= 2, most_dead)
        found["codes"].append(topology.consumers.sum(terms.parts["num_codes"].clone()).item())
        norm, _ = engine.step(terms.total, lr=0.01)
        found["loss"].append(topology.consumers.sum(terms.total.detach().clone()).item())
        found["aux"].append(topology.consumers.sum(terms.parts.get("aux", norm * 0).clone()).item())
        found["norm"].append(norm.item())
    tensors = model.state() | engine.state()
    if optim == "adam":
        tensors |= {f"grad.{name}": value for name, value in engine.gradients().items()}
    for name, (tensor, placement) in tensors.items():
        if placement == "owned":
            tensor = topology.dp.gather_rows(tensor)
        found[name] = tensor.clone() if placement == "replicated" else topology.shard.gather_rows(tensor)
    found["moment bytes"] = sum(
        tensor.nbytes for name, (tensor, _) in engine.state().items() if "W_" in name and "skip" not in name
    )
    return found
