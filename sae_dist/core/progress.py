"""The progress of work that takes more than a few seconds, in plain lines on stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from sae_dist.core.text import print_line

T = TypeVar("T")
LINE_EVERY_S = 10.0


def reported(items: Iterator[T], size: Callable[[T], int], total: int, what: str) -> Iterator[T]:
    """Yield the items, and print every ten seconds how far they are and how long the rest may take.

    Args:
        size: returns how much of `total` an item is.
        what: follows the numbers, such as "held-out activations".
    """
    began = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done = min(done + size(item), total)
        now = time.monotonic()
        if now - last >= LINE_EVERY_S and 0 < done < total:
            last, left_s = now, (now - began) / done * (total - done)
            print_line(f"{done:,} of {total:,} {what}, about {clock(left_s)} left")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Print a line if the body takes longer than ten seconds; on a terminal at once.

    Args:
        what: is going on, such as "loading the language model".
    """
    # Wrong input is answered within these seconds, by one line alone.
    timer = threading.Timer(0.0 if sys.stderr.isatty() else LINE_EVERY_S, print_line, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def clock(seconds: float) -> str:
    """Return a duration as 03:20, or 1:03:20 with hours."""
    return tqdm.format_interval(max(seconds, 0.0))
