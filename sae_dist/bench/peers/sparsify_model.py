"""A stand-in for the language model inside whose forward hook sparsify's trainer learns.

Both scripts of sparsify use it. Runs in sparsify's own Python, as they do: imports nothing of sae_dist.
"""

from typing import Any

import torch
from torch import Tensor


class StandIn(torch.nn.Module):
    """The parts of a transformers model that the trainer touches; `rows` is the module that it hooks."""

    def __init__(self, rows: torch.nn.Module, device: torch.device):
        super().__init__()
        self.rows, self.device = rows, device
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}

    @property
    def base_model(self) -> torch.nn.Module:
        """The model without its head, which is all of it."""
        return self

    def forward(self, input_ids: Tensor) -> Any:
        """Run the hooked module on token ids [N, S]."""
        return self.rows(input_ids)
