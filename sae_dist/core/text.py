"""Short texts: sizes, errors in one line, and lines on the terminal."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from sae_dist.core.hidden import masked

GIB, MIB = 2**30, 2**20


def gib(count: float, digits: int = 1) -> str:
    """Return a number of bytes in GiB, such as `1,536.0 GiB`."""
    return f"{count / GIB:,.{digits}f} GiB"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; of an error without text, the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def class_and_line(error: BaseException) -> str:
    """Return an error's class and the first line of its text, such as `ValueError: no such key`."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def columns(rows: Sequence[Sequence[str]], left: int | None = 1) -> list[str]:
    """Return the lines of a table: cells of a column under each other, two spaces between columns.

    Args:
        left: how many columns are aligned to the left, the others to the right; None: all.
    """
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(wide) if left is None else left
    lines = []
    for row in rows:
        cells = [*map(str.ljust, row[:left], wide), *map(str.rjust, row[left:], wide[left:])]
        lines.append("  ".join(cells).rstrip())
    return lines


def print_line(line: str) -> None:
    """Print a line on stderr at once, above a progress bar if there is one; secrets in it are hidden."""
    tqdm.write(masked(line), file=sys.stderr)
    sys.stderr.flush()
