"""Checks of a finished dictionary before it is used: of its files, its tensors and its metadata."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.sums import check_listed
from sae_dist.export.exported import ExportedSae
from sae_dist.export.reading import existing

CHECKED_AT_ONCE = 1 << 22
"""Numbers of a tensor that are looked at in one go: it may be mapped, and larger than memory."""
OPEN_ABOVE = "threshold_F"
"""The tensor in which infinity has a meaning: it is never reached."""
AT_ONCE_BYTES = 256 << 20
"""Files of up to so many bytes are checked without being asked for: it takes less than a second."""


def check_files(folder: Path, files: Sequence[Path]) -> None:
    """Check files of a folder, as far as the program that wrote them left a list of their checksums.

    Raises:
        ConfigError: one is missing, is a pointer of Git LFS, or is not what was written.
    """
    names = [file.name for file in files]
    for name in names:
        existing(folder, name, names)
    check_listed(folder, names)


def check_numbers(path: Path, sae: ExportedSae) -> None:
    """Check that every tensor holds numbers only, and read all of them for it.

    Args:
        path: where they were read, for the error.

    Raises:
        ConfigError: one holds NaN or inf; the message names it and its row.
    """
    for each in fields(sae):
        tensor = getattr(sae, each.name)
        row = _first_bad_row(tensor, each.name == OPEN_ABOVE) if isinstance(tensor, Tensor) else None
        if row is not None:
            name = each.name.rpartition("_")[0]
            raise ConfigError(f"{path}: {name} has NaN or inf, first in row {row}; it cannot be used")


def _first_bad_row(tensor: Tensor, open_above: bool) -> int | None:
    """Return the first row that holds what is no number, in the order of storage; None: there is none."""
    # A view by columns is read in the order of its numbers.
    across = tensor.dim() == 2 and not tensor.is_contiguous()
    ordered = tensor.T if across else tensor
    rows = max(1, CHECKED_AT_ONCE * len(ordered) // max(1, ordered.numel()))
    for number, part in enumerate(ordered.split(rows)):
        part = part.float() if part.element_size() == 1 else part  # float8 has few operations
        bad = part.isnan() | (part == -float("inf")) if open_above else ~part.isfinite()
        if bool(bad.any()):
            place: list[int] = bad.nonzero()[0].tolist()
            return place[-1] if across else number * rows + place[0]
    return None


def check_said(path: Path, sae: ExportedSae) -> None:
    """Check what a dictionary's metadata say of it.

    Args:
        path: where they were read, for the error.

    Raises:
        ConfigError: more latents were selected in training than there are.
    """
    k = sae.metadata.get("training_k")
    if isinstance(k, int) and k > sae.num_latents:
        raise ConfigError(f"{path}: training_k={k} is more than the {sae.num_latents} latents")
