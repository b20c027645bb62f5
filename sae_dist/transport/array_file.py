"""Arrays [N, D] of .npy and .safetensors files, found, checked and read without torch."""

import glob
import os
from pathlib import Path

import numpy as np

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.transport.array_formats import ArrayFile, open_file

SAMPLE_ROWS = 4096
SUFFIXES = (".npy", ".safetensors")


def find_arrays(path: str, key: str | None) -> list[ArrayFile]:
    """Find the rows at `path`, a file, a folder or a pattern, and check a sample of them.

    Args:
        key: which tensor of a safetensors file; None: the only one, or `rows`.

    Returns:
        The files in the order of their names; those without rows are left out.

    Raises:
        ConfigError: no such file, one that cannot be read, not a floating [N, D] array, other widths or
            dtypes than the first file's, no rows at all, NaN or inf in the sample.
    """
    opened = [open_file(file, key) for file in _paths(path)]
    for each in opened:
        if len(each.rows.shape) != 2 or 0 in each.rows.shape[1:]:
            raise ConfigError(
                f"activations.path={each.path} holds {each.rows.dtype} of shape {list(each.rows.shape)}; "
                "it must be a floating-point array [N, D]"
            )
    found = [each for each in opened if each.rows.shape[0]]
    if not found:
        raise ConfigError(
            f"activations.path={path} has no rows: {opened[0].path.name} has shape "
            f"{list(opened[0].rows.shape)}; it must be [N, D] with N > 0"
        )
    first = found[0]
    for each in found:
        if (each.dtype, each.rows.shape[1]) != (first.dtype, first.rows.shape[1]):
            raise ConfigError(
                f"activations.path={path}: {each.path.name} holds {each.dtype} of width "
                f"{each.rows.shape[1]}, and {first.path.name} {first.dtype} of width {first.rows.shape[1]}; "
                "give files of one model and hook"
            )
    for each in found:
        _check_sample(each, max(SAMPLE_ROWS // len(found), 16))
    return found


def _paths(path: str) -> list[Path]:
    """List the files that `activations.path` names."""
    place, asked = Path(path).expanduser(), f"activations.path={path}"
    if place.is_dir():
        names = sorted(place.iterdir())
        found = [each for each in names if each.suffix in SUFFIXES and not each.name.startswith(".")]
        if not found:
            torch_file = next((each.name for each in names if each.suffix in (".pt", ".pth")), None)
            there = f"; {_convert(torch_file)}" if torch_file else ""
            raise ConfigError(f"{asked} is a folder without .npy and .safetensors files{there}")
    elif place.is_file():
        found = [place]
    elif glob.has_magic(path):
        found = [Path(each) for each in sorted(glob.glob(os.path.expanduser(path), recursive=True))]
        if not found:
            raise ConfigError(f"{asked} matches no file; give .npy or .safetensors files")
    else:
        lost = f"is a link to {os.readlink(place)}, which is not there" if place.is_symlink() else None
        raise ConfigError(
            f"{asked} {lost or 'does not exist'}; give an .npy or .safetensors file, a folder of them, or a "
            "pattern"
        )
    for each in found:
        if each.suffix in (".pt", ".pth"):
            raise ConfigError(f"activations.path={each}: {_convert(each.name)}")
        if each.suffix not in SUFFIXES:
            raise ConfigError(f"activations.path={each} must end in .npy or .safetensors")
        if not each.is_file():
            raise ConfigError(f"activations.path={each} is not a file")
    return found


def _convert(name: str) -> str:
    """Say how a file of torch.save becomes one that can be mapped, and holds no code."""
    return (
        f"{name} is a pickle, which is not read; convert it once: safetensors.torch.save_file({{'rows': "
        f"torch.load('{name}', weights_only=True)}}, 'rows.safetensors')"
    )


def _check_sample(file: ArrayFile, rows: int) -> None:
    """Check that rows spread over a file hold numbers that float32 can hold."""
    stride = max(1, file.rows.shape[0] // rows)
    try:
        sample_ND = file.read(0, file.rows.shape[0], stride)
    except DataError as error:
        raise ConfigError(f"activations.path={error}") from None
    bad = np.flatnonzero(~_finite_rows(sample_ND))
    if len(bad):
        raise ConfigError(
            f"activations.path={file.path} has NaN or inf in row {int(bad[0]) * stride}; remove it"
        )


def _finite_rows(sample_ND: np.ndarray) -> np.ndarray:
    """Return which rows hold numbers that float32 can hold, [N]."""
    if sample_ND.dtype == np.uint16:
        exponent = np.uint16(0x7F80)
        return np.all((sample_ND & exponent) != exponent, axis=1)
    with np.errstate(over="ignore"):
        return np.all(np.isfinite(sample_ND.astype(np.float32)), axis=1)
