"""The codes of a window while it is read, and the files of all windows.

Letters: P codes.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from sae_dist.atlas.postings import write_window
from sae_dist.atlas.schema import WORK

CODES = "codes"


class WindowCodes:
    """The codes that one rank found in a window."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, row_P: Tensor, latent_P: Tensor, code_P: Tensor) -> None:
        """Add codes, which are on the host."""
        self.add_arrays(row_P.numpy(), latent_P.numpy(), code_P.float().numpy())

    def add_arrays(self, row_P: np.ndarray, latent_P: np.ndarray, code_P: np.ndarray) -> None:
        """Add codes that are arrays; a row and a latent take four bytes each from now on."""
        self._parts.append((row_P.astype(np.uint32), latent_P.astype(np.uint32), code_P))

    def write(self, folder: Path, window: int, consumer: int) -> None:
        """Write them as the part of a consumer, by its index, in the files of a window."""
        empty = (np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.float32))
        row_P, latent_P, code_P = map(np.concatenate, zip(empty, *self._parts, strict=True))
        write_window(_folder(folder) / f"window-{window:07d}-{consumer:05d}.npy", latent_P, row_P, code_P)


def window_files(folder: Path, windows: int) -> list[list[Path]]:
    """Return the files of each window, in order of the consumers that wrote them."""
    return [sorted(_folder(folder).glob(f"window-{each:07d}-*.npy")) for each in range(windows)]


def remove_windows(folder: Path, first: int) -> None:
    """Remove the files of windows from `first` on: of a pass that ended before they were done."""
    for path in _folder(folder).glob("window-*.npy"):
        if int(path.name.split("-")[1]) >= first:
            path.unlink()


def _folder(folder: Path) -> Path:
    return folder / WORK / CODES
