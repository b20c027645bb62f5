"""The rates at which the features of synthetic activations fire, computed without torch.

Letters: as core.types.
"""

import numpy as np

from sae_dist.config.sections import ActivationsConfig
from sae_dist.core.errors import ConfigError


def firing_rates(cfg: ActivationsConfig) -> np.ndarray:
    """Return the share of rows in which each feature fires, [G]: it follows `zipf`, the sum is `mean_active`.

    Raises:
        ConfigError: a rate, or the rates of a group whose features never fire together, exceed 1.
    """
    assert cfg.num_features is not None and cfg.mean_active is not None and cfg.zipf is not None
    number_G = np.arange(cfg.num_features)
    size = cfg.group_size or 1
    first_G = number_G // size * size
    if cfg.groups == "hierarchy":
        weight_G = (1.0 + first_G) ** -cfg.zipf * np.where(
            number_G == first_G, 1.0, cfg.group_strength or 0.0
        )
    else:
        weight_G = (1.0 + number_G) ** -cfg.zipf
    rates_G = weight_G * (cfg.mean_active / weight_G.sum())
    most = rates_G.reshape(-1, size).sum(1).max() if cfg.groups == "apart" else rates_G.max()
    if most > 1 + 1e-12:
        what = "the features of a group" if cfg.groups == "apart" else "a feature"
        raise ConfigError(
            f"activations.mean_active={cfg.mean_active:g} would have {what} fire in {most:.3g} of all rows; "
            f"use at most {cfg.mean_active / most:.3g}, or change activations.zipf or activations.groups"
        )
    return rates_G
