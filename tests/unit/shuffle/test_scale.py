"""What the first batch tells before the first step: how much of it is its mean, and whether it varies."""

from types import SimpleNamespace

import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.shuffle.scale import mean_share
from sae_dist.train.announce import MEAN_SHARE, mean_in_words
from sae_dist.train.start import check_variance

ALONE = SimpleNamespace(sum=lambda x: x)


@pytest.mark.parametrize("offset, share", [(0.0, 0.0), (1.0, 0.5), (10.0, 100 / 101)])
def test_the_means_share_of_the_squared_norm(offset, share):
    rows = torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0)) + offset
    assert mean_share(rows, ALONE) == pytest.approx(share, abs=5e-3)


def test_the_remedy_is_named():
    assert "97% of" in mean_in_words(0.97) and "activations.scaling=centred" in mean_in_words(0.97)
    assert 0.445 < MEAN_SHARE < 0.521, "the default run's share, and one with which FVU is a fifth higher"


@pytest.mark.parametrize("spread, refused", [(0.0, True), (1e-7, True), (1e-3, False)])
def test_rows_that_are_all_alike_are_refused(spread, refused):
    mean = torch.ones(8)
    dictionary = SimpleNamespace(variance=torch.tensor(8 * spread**2), mean_E=mean)
    run = SimpleNamespace(dictionary=dictionary, cfg=SimpleNamespace(batch=64))
    if refused:
        with pytest.raises(ConfigError, match="the 64 activations of the first batch are all alike"):
            check_variance(run)
    else:
        check_variance(run)
