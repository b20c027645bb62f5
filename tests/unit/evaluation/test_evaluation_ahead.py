"""Reading ahead changes neither the items, nor their order, nor what goes wrong."""

import threading
import time

import pytest

from sae_dist.evaluation.ahead import ahead


def test_items_come_in_order_and_are_computed_while_the_last_is_used():
    computed = []

    def items():
        for number in range(6):
            computed.append((number, threading.current_thread()))
            yield number

    taken = ahead(items(), depth=2)
    assert next(taken) == 0
    deadline = time.monotonic() + 5
    while len(computed) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert [number for number, _ in computed] == [0, 1, 2, 3], "one taken, two waiting, one in hand"
    assert computed[0][1] is not threading.current_thread()
    assert list(taken) == [1, 2, 3, 4, 5]


def test_an_error_is_raised_where_the_items_are_used():
    def items():
        yield 1
        raise ValueError("damaged")

    taken = ahead(items())
    assert next(taken) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(taken)


def test_closing_early_ends_the_thread():
    before = threading.active_count()
    taken = ahead(iter(range(1000)))
    assert next(taken) == 0 and threading.active_count() == before + 1
    taken.close()
    assert threading.active_count() == before
