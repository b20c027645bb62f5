"""Known sparse features, more of them than dimensions, from which synthetic activations are made.

A row is the sum of the features that fire in it, each a fixed unit direction times a magnitude: the toy
model of superposition (Elhage et al. 2022, arXiv 2209.10652), with the features as ground truth against
which a dictionary is measured (Sharkey et al. 2022, "Taking features out of superposition with sparse
autoencoders").

Letters: as core.types; P pairs of a row and a feature that fires in it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_dist.config.sections import ActivationsConfig
from sae_dist.transport.firing_rates import firing_rates

DIRECTIONS = 3
"""Last integer of the random key of directions; the shuffle uses 1 and 2, the rows other numbers."""


class Draws:
    """Random numbers from raw Philox integers, which numpy keeps across versions, unlike its distributions.

    Args:
        key: integers; another key gives another stream.
    """

    def __init__(self, *key: int):
        self.stream = np.random.Philox(seed=list(key))

    def uniform(self, *shape: int) -> np.ndarray:
        """Draw multiples of 2^-53 in [0, 1)."""
        return (self.stream.random_raw(int(np.prod(shape))) >> np.uint64(11)).reshape(shape) * 2.0**-53

    def normal(self, *shape: int) -> np.ndarray:
        """Draw standard Gaussian numbers (Box and Muller)."""
        radius = np.sqrt(-2 * np.log1p(-self.uniform(*shape)))
        return radius * np.cos(2 * np.pi * self.uniform(*shape))


@dataclass(frozen=True)
class GroundTruth:
    """The true features of synthetic activations.

    Attributes:
        directions_GD: unit rows, fp64.
        rates_G: share of rows in which each feature fires.
        names: as given in the config; empty: the features have no names.
    """

    cfg: ActivationsConfig
    directions_GD: Tensor
    rates_G: np.ndarray
    names: tuple[str, ...]

    @staticmethod
    def of(cfg: ActivationsConfig, seed: int) -> "GroundTruth":
        """Make the features of a config; every reader of it gets the same.

        Raises:
            ConfigError: features would have to fire in more than all rows.
        """
        assert cfg.num_features is not None and cfg.width is not None, "checked by config.validate"
        if cfg.directions is not None:
            directions_GD = torch.tensor(cfg.directions, dtype=torch.float64)
        else:
            drawn = Draws(seed, 0, 0, DIRECTIONS).normal(cfg.num_features, cfg.width)
            directions_GD = torch.from_numpy(drawn)
        return GroundTruth(cfg, normalize(directions_GD, dim=1), firing_rates(cfg), tuple(cfg.names or ()))

    @property
    def width(self) -> int:
        return self.directions_GD.shape[1]

    @property
    def true_l0(self) -> float:
        """The number of features that fire in a row, on average over all rows that could be drawn."""
        return float(self.rates_G.sum())

    def fires(self, rows: int, draws: Draws) -> np.ndarray:
        """Draw which features fire in which row: bool [R, G].

        together    two features of a group that fire equally often have correlation `group_strength`
        hierarchy   the first feature of a group is the parent; the others fire only where it does, each in
                    `group_strength` of its rows
        apart       at most one feature of a group fires
        """
        kind, size, strength = self.cfg.groups, self.cfg.group_size or 1, self.cfg.group_strength or 0.0
        G = len(self.rates_G)
        group_G = np.arange(G) // size
        if kind == "apart":
            shared_RG = draws.uniform(rows, G // size)[:, group_G]
            last_G = self.rates_G.reshape(-1, size).cumsum(1).reshape(G)
            return (last_G - self.rates_G <= shared_RG) & (shared_RG < last_G)
        own_RG = draws.uniform(rows, G)
        if kind == "together":
            # Each feature uses the group's number with probability sqrt(c), so two of them do with c.
            shared_RG = draws.uniform(rows, G // size)[:, group_G]
            own_RG = np.where(draws.uniform(rows, G) < strength**0.5, shared_RG, own_RG)
        elif kind == "hierarchy":
            parent_G = group_G * size
            fires_RG = own_RG < np.where(np.arange(G) == parent_G, self.rates_G, strength)
            return fires_RG & fires_RG[:, parent_G]
        return own_RG < self.rates_G

    def magnitudes(self, pairs: int, draws: Draws) -> np.ndarray:
        """Draw the magnitudes of features that fire, [P]: mean 1."""
        if self.cfg.magnitudes == "constant":
            return np.ones(pairs)
        drawn_P = draws.uniform(pairs)
        return 2 * drawn_P if self.cfg.magnitudes == "uniform" else -np.log1p(-drawn_P)
