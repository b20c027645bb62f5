"""Run folders that are their owner's alone (`private=true`): nobody else can enter or read them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHERS = 0o077
"""The bits of a mode that let others in."""


@contextmanager
def as_private_as(folder: Path) -> Iterator[None]:
    """Make the files and folders of the body, also of processes started in it, as private as a folder.

    In one that others may enter, the process's umask decides, as everywhere.
    """
    alone = folder.is_dir() and not folder.stat().st_mode & OTHERS
    before = os.umask(OTHERS) if alone else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)
