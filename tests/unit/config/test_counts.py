"""Counts as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_dist.config.counts import format_count, parse_count
from sae_dist.core.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("2M", 2_000_000),
        ("1e9", 10**9),
        ("10B", 10**10),
        ("500k", 500_000),
        ("1.5m", 1_500_000),
        (4096, 4096),
        ("4096", 4096),
        (1e9, 10**9),
        ("1_000", 1000),
        (0, 0),
        ("2T", 2 * 10**12),
    ],
)
def test_reads(written, number):
    assert parse_count(written, "train_tokens") == number


NO_COUNTS = ["two", "", "M", "-1", "1.5", "2G", "nan", "inf", None, True, "1e30", [1]]


@pytest.mark.parametrize("written", NO_COUNTS)
def test_refuses_with_the_field_and_an_example(written):
    with pytest.raises(ConfigError, match="train_tokens=.*500k"):
        parse_count(written, "train_tokens")


@given(st.integers(0, 10**15))
def test_what_is_written_is_read_back(number):
    assert parse_count(format_count(number), "x") == number
