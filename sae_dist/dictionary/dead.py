"""Dead latents: those that have not fired for `sae.dead_after` tokens, over all replicas."""

import torch
from torch import Tensor

from sae_dist.dist.collectives import Axis


class DeadLatents:
    """When each latent of this shard last fired, in tokens seen by the whole run."""

    def __init__(self, num_latents: int, dead_after: int, device: torch.device):
        self.dead_after = dead_after
        self.last_fired_F = torch.zeros(num_latents, dtype=torch.int64, device=device)

    def mark(self, latent_N: Tensor, fired_N: Tensor, tokens: int, dp: Axis) -> None:
        """Of `latent_N` (repeats allowed), those with `fired_N` fired in a step that ended at `tokens`."""
        self.last_fired_F.scatter_reduce_(0, latent_N, fired_N * tokens, "amax")
        dp.max(self.last_fired_F)

    def mask(self, tokens: int) -> Tensor:
        """True for latents that are dead at `tokens`, [F]."""
        return tokens - self.last_fired_F > self.dead_after
