"""A model under one condition of a study: steered as `interpret.steer` does, with a note of what changed.

Letters: as core.types; I the steered latent alone.
"""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.forward import Forward
from sae_dist.interpret.some import SomeLatents
from sae_dist.interpret.steer import Steered
from sae_dist.interpret.study.conditions import Condition


class Conditioned(Steered):
    """A model that is steered in one way.

    Attributes:
        condition: in which way.
        lengths_N1: how many tokens the prompts have that a batch continues; None: the forward itself tells.
        known: codes of latents on the batch's activations, which are the same under every condition.
        changed: how many activations moved so far.
        shares: the mean change of each forward, as a share of the median norm of the activations.
    """

    def __init__(self, dictionary: Dictionary, lm: Any, condition: Condition, positions: str):
        direction_E = condition.direction_E
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `approximate` is reported once, on the page
            super().__init__(
                dictionary,
                lm,
                {condition.latent: condition.intervention},
                positions=self._meant,
                force=True,
                directions_IE=None if direction_E is None else direction_E[None].to(dictionary.dtype),
            )
        self.condition, self._word = condition, positions
        self.lengths_N1: Tensor | None = None
        self.known: dict[int, Tensor | None] | None = None
        self.changed = 0
        self.shares: list[float] = []

    def _meant(self, forward: Forward) -> Tensor:
        """Return which activations are steered [N, S]."""
        if self.lengths_N1 is not None:
            forward = replace(forward)
            forward.prompt_N1 = self.lengths_N1  # the texts go on behind the prompts
        at_NS = forward.mask(self._word)
        if at_NS is None:
            return torch.ones(forward.shape, dtype=torch.bool, device=forward.place_NS.device)
        return at_NS

    def _codes(self, some: SomeLatents, x_BD: Tensor) -> Tensor | None:
        if self.known is None:
            return super()._codes(some, x_BD)
        latent = self.condition.latent
        if latent not in self.known:
            self.known[latent] = super()._codes(some, x_BD)
        return self.known[latent]

    def _delta(self, moves: Any, x_BD: Tensor, y_BE: Tensor) -> tuple[Tensor | None, Tensor | None]:
        delta_BE, moved_B1 = super()._delta(moves, x_BD, y_BE)
        if delta_BE is None:
            self.shares.append(0.0)
            return None, moved_B1
        return self.condition.sign * delta_BE, moved_B1

    def _look(self, forward: Forward, moves: Any, y_BE: Tensor, delta_BE: Tensor) -> None:
        size_B = delta_BE.float().norm(dim=1).expand(len(y_BE))
        typical = float(y_BE.float().norm(dim=1).median())
        self.changed += int((size_B > 0).sum())
        self.shares.append(float(size_B.mean()) / max(typical, 1e-30))
        self.largest = max(self.largest, float(size_B.max()) / max(typical, 1e-30))
