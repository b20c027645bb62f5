"""The reader of state dicts that torch.save wrote: nothing is unpickled but tensors and containers."""

import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import check_archive, reading
from sae_dist.export.keys import LONGEST_SHOWN
from sae_dist.export.reading import floats

PICKLE, MOST_PICKLE_BYTES, LONGEST_NAME = "data.pkl", 1 << 20, 500
"""The part of an archive that says which tensors it holds."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict; those of floating-point numbers as float32.

    Raises:
        ConfigError: the file is damaged, or holds something else.
    """
    how = "is not a file of tensors as torch.save writes it, and nothing else in it is unpickled ({reason})"
    with reading(path, how):
        _check_archive(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError:
            # torch's message is long, and says how to run what is in the file.
            raise ValueError("it holds something else") from None
        tensors = isinstance(found, dict) and all(isinstance(each, Tensor) for each in found.values())
        if tensors:
            _check_whole(found)
            return floats(found)
    names = found if isinstance(found, dict) else ()
    keys = ", ".join(name if isinstance(name, str) else type(name).__name__ for name in names)
    raise ConfigError(
        f"{path} is not a state dict of tensors ({keys or type(found).__name__}); save the dictionary's "
        "state_dict()"
    )


def _check_archive(path: Path) -> None:
    """Check that an archive is as torch.save writes it, nothing packed, before torch makes room for it.

    Raises:
        ValueError, BadZipFile: it is not.
    """
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size, 1)
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} in it is packed")
            if entry.filename.endswith(PICKLE):
                _check_pickle(archive.read(entry) if entry.file_size <= MOST_PICKLE_BYTES else b"")


def _check_pickle(data: bytes) -> None:
    """Check that a pickle is one, and that its names are short: torch searches them for long when it fails.

    Raises:
        ValueError: it is not.
    """
    for _, argument, _ in pickletools.genops(data):
        if isinstance(argument, str | bytes) and len(argument) > LONGEST_NAME:
            raise ValueError(f"it has a name of {len(argument):,} signs")


def _check_whole(state: Mapping[Any, Tensor]) -> None:
    """Check that tensors are plain ones with a place in the file for each number.

    Raises:
        ValueError: one is not, such as a number that is repeated to any size.
    """
    for name, each in state.items():
        plain = each.layout == torch.strided and each.device.type == "cpu" and not each.is_quantized
        if not isinstance(name, str) or not plain or each.nbytes > each.untyped_storage().nbytes():
            raise ValueError(f"{str(name)[:LONGEST_SHOWN]} is not a plain tensor")
