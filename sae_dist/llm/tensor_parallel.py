"""Tensor parallelism by transformers: each rank of a group holds a slice of every matrix.

All ranks of the group compute the same chunk together, and each of them gets the activations.
"""

from typing import Any

import torch
from torch import nn

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import LlmFacts
from sae_dist.distributed.collectives import Axis
from sae_dist.distributed.mesh import team_mesh


class _TeamMesh:
    """A mesh in the form that transformers asks for; its own would span the whole world."""

    def __init__(self, mesh: Any):
        self.mesh = mesh

    def get_mesh(self, _axes: Any) -> Any:
        return self.mesh


def load_split(
    kind: Any, config: Any, path: str, *, team: Axis, device: torch.device, **how: Any
) -> tuple[nn.Module, set[str]]:
    """Load a model whose matrices are read slice by slice: no rank ever reads a whole one.

    Args:
        kind: the model's class.
        how: dtype, attn_implementation.

    Returns:
        The model, and the names of parameters that the files do not have.
    """
    from transformers.distributed import DistributedConfig

    place = None if device.type == "cpu" else device
    meshes = _TeamMesh(team_mesh(team, device.type))

    def over_the_team(_cls: type, asked: Any, device_map: Any = None) -> tuple[Any, Any, _TeamMesh]:
        return asked, place, meshes

    # A subclass, because the method of the original class makes a mesh of the whole world.
    own = {"__module__": kind.__module__, "prepare_distribute_model": classmethod(over_the_team)}
    ours: Any = type(kind.__name__, (kind,), own)
    model, report = ours.from_pretrained(
        path,
        config=config,
        distributed_config=DistributedConfig(tp_size=team.size),
        output_loading_info=True,
        **how,
    )
    return model, set(report["missing_keys"])


def check_not_split(facts: LlmFacts, columns: int) -> None:
    """Check that a captured activation is whole: inside attention and MLP each rank has only a slice.

    Raises:
        ConfigError: the captured activation is a slice.
    """
    if columns != facts.columns:
        raise ConfigError(
            f"hook={' and '.join(facts.hooks)}: with llm.shard=tp a rank sees {columns} of {facts.columns} "
            "columns there; hook the output of a layer, its attention or its MLP, or use llm.shard=zero3"
        )


def check_plan(cfg: LlmConfig, facts: LlmFacts) -> None:
    """Check that transformers can split this architecture into `llm.shard_size` slices.

    Raises:
        ConfigError: it has no plan for it, or the heads are not divisible.
    """
    if cfg.shard != "tp":
        return
    if facts.tp_sizes is None:
        raise ConfigError(
            f"llm.shard=tp: transformers has no tensor-parallel plan for {facts.architecture}, which is "
            f"llm.name={cfg.name}; use llm.shard=zero3"
        )
    if cfg.shard_size not in facts.tp_sizes:
        possible = ", ".join(map(str, facts.tp_sizes)) or "none"
        raise ConfigError(
            f"llm.shard_size={cfg.shard_size} does not divide the attention heads of llm.name={cfg.name}; "
            f"with llm.shard=tp it can be {possible}"
        )
