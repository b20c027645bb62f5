"""Dead latents: those that have not fired for `sae.dead_after` tokens, over all replicas."""

import torch
from torch import Tensor

from sae_dist.dist.collectives import Axis


class DeadLatents:
    """When each latent of this shard last fired, in tokens seen by the whole run."""

    def __init__(self, num_latents: int, dead_after: int, device: torch.device):
        self.dead_after = dead_after
        self.last_fired_F = torch.zeros(num_latents, dtype=torch.int64, device=device)

    def mark(self, latent_P: Tensor, fired_P: Tensor, tokens: int, dp: Axis) -> None:
        """Of the selected `latent_P`, those with `fired_P` fired in a step that ended at `tokens`."""
        self.last_fired_F.scatter_reduce_(0, latent_P, fired_P * tokens, "amax")
        dp.max(self.last_fired_F)

    def mask(self, tokens: int) -> Tensor:
        """True for latents that are dead at `tokens`, [F]."""
        return tokens - self.last_fired_F > self.dead_after
