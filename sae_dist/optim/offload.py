"""The Adam with its state and arithmetic on the host, DeepSpeed's CPUAdam (`optim=offload`).

It is for dictionaries whose moments do not fit the device. Each step copies weights and gradients to the
host, makes one fused update there, and copies the weights back: three times the weights' bytes over the bus.
They go through pinned memory by slabs: while the bus moves one, the host copies another. The update itself
begins when all are there. On a CPU run nothing is copied.
"""

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.config.sections import OptimConfig
from sae_dist.core.staging import Staging


class HostAdam:
    """An Adam on the host, with the interface of `engine.FusedAdam`."""

    def __init__(self, cfg: OptimConfig, parameters: list[Parameter], factors: list[float]):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        self.device_parameters, self.factors = parameters, factors
        self.host = [p if p.device.type == "cpu" else Parameter(p.detach().cpu()) for p in parameters]
        self.moved = [(d, h) for d, h in zip(parameters, self.host, strict=True) if h is not d]
        for _, host in self.moved:
            host.grad = torch.empty_like(host)
        self.staging = Staging() if self.moved else None
        self.adam = DeepSpeedCPUAdam(
            [{"params": [p]} for p in self.host],
            lr=0.0,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.eps,
            adamw_mode=False,
        )
        for parameter in self.host:
            self.adam.state[parameter] = {
                "step": 0,
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def update(self, lr: float, not_finite: Tensor) -> None:
        """Make one update, unless `not_finite` is 1. Waits for the gradients, which the host needs."""
        if not_finite:
            return
        if self.staging is not None:
            # The device's weights count: they were constrained after the last update.
            self.staging.copy((device.data, host.data) for device, host in self.moved)
            self.staging.copy((_grad(device), _grad(host)) for device, host in self.moved)
        for group, factor in zip(self.adam.param_groups, self.factors, strict=True):
            group["lr"] = lr * factor
        self.adam.step()
        if self.staging is not None:
            self.staging.copy_back((host.data, device.data) for device, host in self.moved)

    def moments(self, parameter: Parameter) -> dict[str, Tensor]:
        """Return the moments of one parameter's owned rows, on the host."""
        place = next(i for i, known in enumerate(self.device_parameters) if known is parameter)
        state = self.adam.state[self.host[place]]
        return {key: state[key] for key in ("exp_avg", "exp_avg_sq")}

    @property
    def step_count(self) -> int:
        """The number of updates made so far; may be set."""
        return int(self.adam.state[self.host[0]]["step"])

    @step_count.setter
    def step_count(self, value: int) -> None:
        for parameter in self.host:
            self.adam.state[parameter]["step"] = value


def _grad(parameter: Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
