"""The step: reduce gradients, constrain, clip by the global norm, Adam, constrain.

The optimizer knows parameters by name and whether they are "sharded" (split over the shard axis, the
same on every replica) or "replicated" (the same on all consumers); it knows nothing of dictionaries.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.core.config import OptimConfig
from sae_dist.dist.mesh import Topology


class Trainable(Protocol):
    """What the engine needs of a dictionary."""

    def placements(self) -> dict[str, str]: ...

    def constrain_gradient(self) -> None: ...

    def constrain(self) -> None: ...


class Engine:
    """Dense fused Adam with one global-norm clip over all shards."""

    def __init__(self, cfg: OptimConfig, model: Trainable, topology: Topology):
        self.cfg, self.model, self.topology = cfg, model, topology
        self.placements = model.placements()
        self.parameters: dict[str, Parameter] = {name: getattr(model, name) for name in self.placements}
        self.adam = torch.optim.Adam(
            list(self.parameters.values()),
            lr=0.0,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.eps,
            fused=True,
        )

    def step(self, total: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Backward from `total` and one update; nothing moves where a gradient is not finite.

        Returns:
            The global gradient norm before clipping, and a flag (1.0 where it was not finite), both
            equal on all ranks and left on the device.
        """
        self.adam.zero_grad()
        total.backward()
        for name, parameter in self.parameters.items():
            axis = self.topology.dp if self.placements[name] == "sharded" else self.topology.consumers
            axis.sum(_grad(parameter))
        self.model.constrain_gradient()
        norm = self._global_norm()
        not_finite = (~torch.isfinite(norm)).float()
        if self.cfg.clip is not None:
            scale = (self.cfg.clip / norm.clamp(min=self.cfg.clip)).to(norm.dtype)
            for parameter in self.parameters.values():
                _grad(parameter).mul_(scale)
        self.adam.param_groups[0]["lr"] = lr
        # Fused Adam reads these two as torch's GradScaler sets them: a found_inf of 1 skips the update
        # on the device, without a host sync.
        self.adam.grad_scale, self.adam.found_inf = None, not_finite  # type: ignore[attr-defined]
        self.adam.step()
        self.model.constrain()
        return norm, not_finite

    def _global_norm(self) -> Tensor:
        """Norm of the whole gradient: shards' squares summed over the shard axis, the rest once."""
        squares = {"sharded": [], "replicated": []}  # type: dict[str, list[Tensor]]
        for name, parameter in self.parameters.items():
            squares[self.placements[name]].append(_grad(parameter).square().sum())
        sharded = self.topology.shard.sum(torch.stack(squares["sharded"]).sum())
        return (sharded + torch.stack(squares["replicated"]).sum()).sqrt()

    def state(self) -> dict[str, tuple[Tensor, str]]:
        """Moments by parameter, for checkpoints; zeros before the first step."""
        found = {}
        for name, parameter in self.parameters.items():
            moments = self.adam.state[parameter]
            for key in ("exp_avg", "exp_avg_sq"):
                if key not in moments:
                    moments[key] = torch.zeros_like(parameter)
                found[f"adam.{name}.{key}"] = (moments[key], self.placements[name])
            if "step" not in moments:
                moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return found

    @property
    def updates(self) -> int:
        """Updates made so far, from Adam's own counter."""
        return int(next(iter(self.adam.state.values()))["step"]) if self.adam.state else 0

    @updates.setter
    def updates(self, value: int) -> None:
        self.state()
        for moments in self.adam.state.values():
            moments["step"].fill_(float(value))


def _grad(parameter: Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
