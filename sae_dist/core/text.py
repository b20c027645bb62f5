"""Short texts: sizes, errors in one line, foreign text made visible, and lines on the terminal."""

import re
import shlex
import sys
from collections.abc import Sequence

from tqdm import tqdm

from sae_dist.core.errors import ConfigError
from sae_dist.core.hidden import masked

GIB, MIB = 2**30, 2**20
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal or a page obeys and does not show: C0, C1, marks of lines and directions, half pairs."""


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


def visible(text: str, keep: str = "\n\t") -> str:
    """Return text whose control characters are written out, such as `\\x1b`.

    Args:
        keep: those that stay.
    """
    return CONTROL.sub(lambda sign: sign[0] if sign[0] in keep else ascii(sign[0])[1:-1], text)


def check_plain(text: str, what: str) -> None:
    """Check that a name or path has no control characters: it reaches scripts, terminals and pages.

    Raises:
        ConfigError: it has one.
    """
    if found := CONTROL.search(text):
        raise ConfigError(
            f"{what}={visible(text, '')} has the control character {visible(found[0], '')}; write it without"
        )


def quoted(word: object) -> str:
    """Return a word of a command that is printed, such as a path, quoted for a shell."""
    return shlex.quote(visible(str(word), ""))


def show(text: object, end: str = "\n") -> None:
    """Print on stdout, with control characters written out."""
    print(visible(str(text)), end=end)


def print_line(line: str) -> None:
    """Print a line on stderr at once, above any progress bar; see `show`. Secrets are hidden."""
    tqdm.write(visible(masked(line)), file=sys.stderr)
    sys.stderr.flush()
