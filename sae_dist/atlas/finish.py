"""The tables of an atlas, made from what a pass has left, by all consumers; each stage may be done again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sae_dist.atlas.postings import merge_part
from sae_dist.atlas.schema import POSTINGS, WORK, part_file, part_latents, parts
from sae_dist.atlas.text import AT_OF_ROW, Plan, assemble
from sae_dist.atlas.windows import window_files
from sae_dist.core.errors import Preempted
from sae_dist.core.files import read_json, write_json
from sae_dist.distributed.collectives import Axis
from sae_dist.distributed.runtime import StopRequest

NUMBERS = "numbers.json"


class Finishing:
    """The consumers, as they make the tables.

    Args:
        folder: of the atlas.
        windows: that were read.
    """

    def __init__(
        self, folder: Path, plan: Plan, num_latents: int, windows: int, consumers: Axis, stop: StopRequest
    ):
        self.folder, self.plan, self.num_latents, self.windows = folder, plan, num_latents, windows
        self._consumers, self._stop = consumers, stop

    def index(self) -> None:
        """Write text and postings."""
        if self._consumers.rank == 0 and not (self.folder / WORK / NUMBERS).is_file():
            write_json(self.folder / WORK / NUMBERS, assemble(self.folder, self.plan))
        self.together()
        at_of_row = np.load(self.folder / WORK / AT_OF_ROW, mmap_mode="r", allow_pickle=False)
        files = [path for each in window_files(self.folder, self.windows) for path in each]
        for part, latents in self.mine():
            if not part_file(self.folder, POSTINGS, part).is_file():
                merge_part(self.folder, part, latents, files, at_of_row)
        self.together()

    def mine(self) -> Iterator[tuple[int, range]]:
        """Yield the parts that this rank writes, with their latents.

        Raises:
            Preempted: a signal asked to stop.
        """
        each = part_latents(self.num_latents)
        for part in range(self._consumers.rank, parts(self.num_latents), self._consumers.size):
            if self._stop.wanted:
                raise Preempted(
                    "stopped as asked; what is done is kept. Go on: the same command with resume=auto"
                )
            yield part, range(part * each, min((part + 1) * each, self.num_latents))

    def together(self) -> None:
        """Wait until all consumers are here."""
        self._consumers.sum(torch.zeros(1))

    def numbers(self) -> dict[str, int]:
        """Return the numbers of tokens and documents that `assemble` found."""
        return read_json(self.folder / WORK / NUMBERS) or {}
