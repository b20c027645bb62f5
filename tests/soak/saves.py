"""A process that does nothing but save checkpoints, to be killed meanwhile."""

from pathlib import Path

import torch

from sae_dist.checkpoint.background import Background
from sae_dist.checkpoint.read import newest
from sae_dist.checkpoint.store import Checkpoints
from sae_dist.config.sections import TopologyConfig
from sae_dist.core.place import Place
from sae_dist.distributed.mesh import Topology
from sae_dist.distributed.runtime import start


def for_ever(folder: Path) -> None:
    """A checkpoint of 2 MiB that holds its own step, and the next."""
    torch.set_num_threads(1)
    start(Place(0, 1, 0, 1), "cpu", 60.0)
    topology = Topology(TopologyConfig(), Place(0, 1, 0, 1), "cpu")
    store = Checkpoints(folder, topology, 2, background=Background())
    last = newest(folder)
    step = int(last.name[5:]) if last else 0
    while True:
        step += 1
        store.save(step, {"W": (torch.full((1 << 18, 2), float(step)), "sharded")}, {"step": step})
