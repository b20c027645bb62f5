"""The rows of a checkpoint: which rank holds them, and which of those writes them.

Every rank works that out for itself: DCP's own way to agree on it are pickles that the ranks send each other.
"""

import itertools
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

Tensors = dict[str, tuple[Tensor, str]]
"""Name -> (this rank's tensor, how it lies over the mesh).

"sharded": rows split over the shard axis, the same on every replica; "owned": each shard's rows split again
over the replicas; "replicated": the same on every rank.
"""
PLACEMENTS: dict[str, list[Any]] = {"sharded": [Shard(0), Replicate()], "owned": [Shard(0), Shard(0)]}


def label(tensors: Tensors, mesh: DeviceMesh) -> dict[str, Tensor]:
    """Return tensors on the host with the label that tells DCP which rows of the whole tensor they are.

    Args:
        mesh: in the order (shard, dp), see `distributed.mesh`.
    """
    return {
        name: DTensor.from_local(tensor.detach().cpu(), mesh, PLACEMENTS[layout], run_check=False)
        if layout in PLACEMENTS
        else tensor.detach().cpu()
        for name, (tensor, layout) in tensors.items()
    }


def places_of(tensors: Tensors, mesh: DeviceMesh) -> dict[str, list[int]]:
    """Return what this rank writes: tensors by name, and where the first of its rows stands in the whole one.

    Args:
        mesh: as in `label`.
    """
    own = mesh.get_coordinate()
    assert own is not None, "only consumers write checkpoints"
    return share_out(tensors, mesh.size(0), mesh.size(1))[own[0], own[1]]


def share_out(tensors: Tensors, shards: int, replicas: int) -> dict[tuple[int, int], dict[str, list[int]]]:
    """Return what each rank writes: by its coordinates, tensors and where its rows begin in the whole one.

    Every rank finds the same, for all hold as many rows of a tensor. Rows that several hold are written by
    the one of them that has least to write so far.
    """
    ranks = list(itertools.product(range(shards), range(replicas)))
    found: dict[tuple[int, int], dict[str, list[int]]] = {rank: {} for rank in ranks}
    loads = dict.fromkeys(ranks, 0)
    for name, (tensor, how) in tensors.items():
        holders = {
            "sharded": [[(shard, replica) for replica in range(replicas)] for shard in range(shards)],
            "owned": [[rank] for rank in ranks],
            "replicated": [ranks],
        }[how]
        for number, holding in enumerate(holders):
            writer = min(holding, key=lambda rank: loads[rank])
            loads[writer] += tensor.nbytes
            found[writer][name] = [number * len(tensor), *[0] * (tensor.dim() - 1)] if tensor.dim() else []
    return found
