"""The Adam with its state and arithmetic on the host, DeepSpeed's CPUAdam (`optim=offload`).

It is for dictionaries whose moments do not fit the device. Each step copies weights and gradients to the
host, makes one fused update there, and copies the weights back. On a CPU run nothing is copied.
"""

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.config.sections import OptimConfig


class HostAdam:
    """An Adam on the host, with the interface of `engine.FusedAdam`."""

    def __init__(self, cfg: OptimConfig, parameters: list[Parameter], factors: list[float]):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        self.device_parameters, self.factors = parameters, factors
        self.host = [p if p.device.type == "cpu" else Parameter(p.detach().cpu()) for p in parameters]
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
        for device, host in zip(self.device_parameters, self.host, strict=True):
            if host is not device:
                # The device's weights count: they were constrained after the last update.
                assert device.grad is not None
                host.data.copy_(device.data)
                host.grad = device.grad.cpu()
        for group, factor in zip(self.adam.param_groups, self.factors, strict=True):
            group["lr"] = lr * factor
        self.adam.step()
        for device, host in zip(self.device_parameters, self.host, strict=True):
            if host is not device:
                device.data.copy_(host.data)

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
