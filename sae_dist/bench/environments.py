"""The environments of peers that this user made: each holds a word that this user's own folder holds, too.

A benchmark's folder may be somebody else's, and to run an interpreter in it is to run their code.
"""

import secrets
from contextlib import suppress
from pathlib import Path

from sae_dist.core.errors import SaeDistError
from sae_dist.core.parsing import read_bounded

READY = "ready"
"""The file of an environment that is complete: what is installed, and the word in the last line."""
MADE = Path(".cache", "sae_dist", "environments")
"""The words, a line each, below the home directory."""
MOST_BYTES = 1 << 20


def is_mine(environment: Path) -> bool:
    """Return whether an environment is complete, and one that this user made."""
    word = _lines(environment / READY)[-1:]
    return bool(word) and word[0] in _lines(Path.home() / MADE)


def keep(environment: Path, packages: list[str]) -> None:
    """Mark an environment as complete, and as made by this user.

    Raises:
        SaeDistError: the home directory cannot be written.
    """
    word = secrets.token_hex(16)
    made = Path.home() / MADE
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with open(made, "a", encoding="utf-8") as file:
            file.write(f"{word}\n")
    except OSError as error:
        raise SaeDistError(f"cannot write {made}: {error.strerror}; use --peer-python") from None
    (environment / READY).write_text("\n".join([*packages, word]) + "\n", encoding="utf-8")


def _lines(path: Path) -> list[str]:
    with suppress(OSError, ValueError):
        return read_bounded(path, MOST_BYTES).decode("ascii").split()
    return []
