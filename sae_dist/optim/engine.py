"""The optimizer step with dense gradients: reduce, project, clip by the global norm, update, constrain.

The optimizer knows parameters by name and whether they are "sharded" (split over the shard axis, the same
on every replica) or "replicated" (the same on all consumers); it knows nothing of dictionaries.

Each replica owns 1 / dp of the rows of a sharded parameter: gradients are reduce-scattered to the owners,
which hold the moments, and updated rows are gathered. So a rank holds 1 / (dp * shard) of the moments.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.config.sections import OptimConfig
from sae_dist.core.types import Clock, RowTerm, untimed
from sae_dist.distributed.mesh import Topology
from sae_dist.kernels.row_update import normalise, remove_radial

State = dict[str, tuple[Tensor, str]]


class Trainable(Protocol):
    """The part of a dictionary that the optimizer uses."""

    unit_rows: tuple[str, ...]
    lr_groups: dict[str, str]
    row_terms: dict[str, list[RowTerm]] | None

    def placements(self) -> dict[str, str]: ...


class Updater(Protocol):
    """An Adam over the owned rows of all parameters, which reads their .grad."""

    step_count: int

    def update(self, lr: float, not_finite: Tensor) -> None: ...

    def moments(self, parameter: Parameter) -> dict[str, Tensor]: ...


class FusedAdam:
    """The fused Adam of torch, which skips an update on the device if a gradient is not finite."""

    def __init__(self, cfg: OptimConfig, parameters: list[Parameter], factors: list[float]):
        self.factors = factors
        self.adam = torch.optim.Adam(
            [{"params": [p]} for p in parameters],
            lr=0.0,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.eps,
            fused=True,
        )
        for parameter in parameters:
            self.adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def update(self, lr: float, not_finite: Tensor) -> None:
        """Make one update, unless `not_finite` is 1."""
        for group, factor in zip(self.adam.param_groups, self.factors, strict=True):
            group["lr"] = lr * factor
        # Fused Adam reads these two as torch's GradScaler sets them: a found_inf of 1 skips the update
        # on the device, without a host sync.
        self.adam.grad_scale, self.adam.found_inf = None, not_finite  # type: ignore[attr-defined]
        self.adam.step()

    def moments(self, parameter: Parameter) -> dict[str, Tensor]:
        """Return the moments of one parameter's owned rows."""
        state = self.adam.state[parameter]
        return {key: state[key] for key in ("exp_avg", "exp_avg_sq")}

    @property
    def step_count(self) -> int:
        """The number of updates made so far; may be set."""
        return int(next(iter(self.adam.state.values()))["step"])

    @step_count.setter
    def step_count(self, value: int) -> None:
        for state in self.adam.state.values():
            state["step"].fill_(float(value))


class Engine:
    """A dense Adam with one global-norm clip over all shards.

    Args:
        clock: times the phases backward and step.
    """

    def __init__(
        self,
        cfg: OptimConfig,
        model: Trainable,
        topology: Topology,
        updater: Any = FusedAdam,
        clock: Clock = untimed,
    ):
        self.cfg, self.model, self.topology, self.clock = cfg, model, topology, clock
        self.placements = model.placements()
        self.parameters: dict[str, Parameter] = {name: getattr(model, name) for name in self.placements}
        self.owned = {
            name: Parameter(self._own_rows(parameter.data) if self._split(name) else parameter.data)
            for name, parameter in self.parameters.items()
        }
        factors = [lr_factor(cfg, model, name) for name in self.owned]
        self.updater: Updater = updater(cfg, list(self.owned.values()), factors)

    def step(self, total: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Run backward from `total` and make one update; nothing moves if a gradient is not finite.

        Returns:
            The global gradient norm before clipping, and a flag (1.0 where it was not finite), both
            equal on all ranks and left on the device.
        """
        for owned in self.owned.values():
            owned.grad = None  # the last step's, before this step's is made
        with self.clock("backward"):
            total.backward()
        with self.clock("step"):
            return self._apply(lr)

    def _apply(self, lr: float) -> tuple[Tensor, Tensor]:
        self._reduce()
        for name in self.model.unit_rows:
            remove_radial(_grad(self.owned[name]), self.owned[name].data)
        norm = self._global_norm()
        not_finite = (~torch.isfinite(norm)).float()
        if self.cfg.clip is not None:
            scale = (self.cfg.clip / norm.clamp(min=self.cfg.clip)).to(norm.dtype)
            for owned in self.owned.values():
                _grad(owned).mul_(scale)
        self.updater.update(lr, not_finite)
        for name in self.model.unit_rows:
            normalise(self.owned[name].data)
        for name, parameter in self.parameters.items():
            if self._split(name):
                parameter.data.copy_(self.topology.dp.gather_rows(self.owned[name].data))
        return norm, not_finite

    def gradients(self) -> State:
        """Return the last step's gradients as they were applied: projected and clipped."""
        return {name: (_grad(owned), self._placement(name)) for name, owned in self.owned.items()}

    def state(self) -> State:
        """Return the moments by parameter, for checkpoints; zeros before the first step."""
        return {
            f"adam.{name}.{key}": (tensor, self._placement(name))
            for name, owned in self.owned.items()
            for key, tensor in self.updater.moments(owned).items()
        }

    @property
    def updates(self) -> int:
        """The number of updates made so far, from Adam's own counter; may be set."""
        return self.updater.step_count

    @updates.setter
    def updates(self, value: int) -> None:
        self.updater.step_count = value

    def _reduce(self) -> None:
        """Sum this step's gradients over ranks onto their owners, and free the model's own."""
        for name, parameter in self.parameters.items():
            grad = _grad(parameter)
            if self._split(name):
                self.owned[name].grad = self.topology.dp.scatter_sum_rows(grad)
            else:
                axis = self.topology.dp if self.placements[name] == "sharded" else self.topology.consumers
                self.owned[name].grad = axis.sum(grad)
            parameter.grad = None

    def _split(self, name: str) -> bool:
        return self.placements[name] == "sharded" and self.topology.dp.size > 1

    def _placement(self, name: str) -> str:
        return "owned" if self._split(name) else self.placements[name]

    def _own_rows(self, tensor: Tensor) -> Tensor:
        rows = len(tensor) // self.topology.dp.size
        return tensor[self.topology.dp.rank * rows :][:rows]

    def _global_norm(self) -> Tensor:
        """Return the norm of the whole gradient: owned rows summed over all ranks, replicated ones once."""
        squares: dict[str, list[Tensor]] = {"sharded": [], "replicated": []}
        for name, owned in self.owned.items():
            squares[self.placements[name]].append(sum_of_squares(_grad(owned)))
        sharded = self.topology.consumers.sum(torch.stack(squares["sharded"]).sum())
        return (sharded + torch.stack(squares["replicated"]).sum()).sqrt()


def lr_factor(cfg: OptimConfig, model: Trainable, name: str) -> float:
    """Return a parameter's learning rate as a multiple of `optim.lr`: by group encoder, bias, or neither."""
    return {"encoder": cfg.encoder_lr, "bias": cfg.bias_lr}.get(model.lr_groups.get(name, ""), 1.0)


def sum_of_squares(tensor: Tensor) -> Tensor:
    """Return the sum of squares, by rows: one float32 sum of millions of terms is off by a thousandth."""
    return torch.linalg.vector_norm(tensor, dim=-1).square().sum()


def _grad(parameter: Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
