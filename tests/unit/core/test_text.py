"""Sizes and errors as short texts."""

import pytest

from sae_dist.core.text import class_and_line, first_line, gib, print_line


def test_bytes_in_gib():
    assert gib(3 * 2**29) == "1.5 GiB" and gib(3 * 2**29, 2) == "1.50 GiB" and gib(2**42) == "4,096.0 GiB"


@pytest.mark.parametrize(
    ("error", "line", "named"),
    [
        (ValueError("no such key\nsecond line"), "no such key", "ValueError: no such key"),
        (KeyError(), "KeyError", "KeyError: "),
        (RuntimeError("\n  late\n"), "late", "RuntimeError: late"),
    ],
)
def test_an_error_in_one_line(error, line, named):
    assert first_line(error) == line and class_and_line(error) == named


def test_a_line_goes_to_stderr(capfd):
    print_line("half of the chunks")
    assert capfd.readouterr() == ("", "half of the chunks\n")
