"""The tables of an atlas, made from what a pass has left, by all consumers; each stage may be done again."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sae_dist.atlas.describe.head import Head
from sae_dist.atlas.describe.part import describe_part
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.describe.text import Text
from sae_dist.atlas.describe.together import by_place
from sae_dist.atlas.extras import Extras
from sae_dist.atlas.manifest import Manifest, sums_of
from sae_dist.atlas.postings import merge_part
from sae_dist.atlas.schema import (
    DOCUMENTS,
    EXAMPLES,
    LATENTS,
    POSTINGS,
    TOKENS,
    WORK,
    part_file,
    part_latents,
    parts,
)
from sae_dist.atlas.text import AT_OF_ROW, Plan, assemble
from sae_dist.atlas.windows import window_files
from sae_dist.core.errors import DataError, Preempted, TransportError
from sae_dist.core.files import read_json, write_json
from sae_dist.core.process import pause
from sae_dist.distributed.collectives import Axis
from sae_dist.distributed.control import Control
from sae_dist.distributed.runtime import StopRequest

NUMBERS = "numbers.json"
STOPPED, POLL_S = "tables/stopped", 0.02
GO_ON = "stopped as asked; what is done is kept. Go on: the same command with resume=auto"


def check_stop(stop: StopRequest, control: Control) -> None:
    """Stop if a signal asked this rank to, or another one, while tables are made.

    Raises:
        Preempted: it did.
    """
    if stop.wanted:
        control.set(STOPPED, "")
    if control.check(STOPPED):
        raise Preempted(GO_ON)


class Finishing:
    """The consumers, as they make the tables.

    Args:
        folder: of the atlas.
        windows: that were read.
        at_once: codes in memory while tables are made, see `memory.codes_at_once`.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        num_latents: int,
        windows: int,
        at_once: int,
        consumers: Axis,
        control: Control,
        stop: StopRequest,
    ):
        self.folder, self.plan, self.num_latents, self.windows = folder, plan, num_latents, windows
        self._consumers, self._control, self._stop, self._meetings = consumers, control, stop, 0
        self._at_once = at_once

    def index(self) -> None:
        """Write text and postings.

        Raises:
            DataError: there was no text, or too much of it.
        """
        if self._consumers.rank == 0 and not (self.folder / WORK / NUMBERS).is_file():
            write_json(self.folder / WORK / NUMBERS, assemble(self.folder, self.plan))
        self.together()
        if not self._numbers()["kept"]:
            raise DataError("there is no text: no token counts; give more, such as atlas.text=training")
        at_of_row = np.load(self.folder / WORK / AT_OF_ROW, mmap_mode="r", allow_pickle=False)
        files = [path for each in window_files(self.folder, self.windows) for path in each]
        for part, latents in self.mine():
            if not part_file(self.folder, POSTINGS, part).is_file():
                merge_part(self.folder, part, latents, files, at_of_row, self._at_once)
        for window in range(self._consumers.rank, self.windows, self._consumers.size):
            check_stop(self._stop, self._control)
            by_place(self.folder, window, window_files(self.folder, self.windows)[window], at_of_row)
        self.together()

    def describe(
        self, settings: Settings, W_dec_FE: Tensor, head: Head, device: torch.device, near: bool
    ) -> None:
        """Write the tables of latents and of examples.

        Args:
            W_dec_FE: decoder rows of all latents, in memory or mapped.
            device: that multiplies.
            near: find the nearest decoder rows.
        """
        text = Text.open(self.folder) if self._consumers.rank == 0 else None
        self.together()
        extras = None
        for part, latents in self.mine():
            if all(part_file(self.folder, table, part).is_file() for table in (LATENTS, EXAMPLES)):
                continue
            text = text or Text.open(self.folder)
            kept = self._numbers()["kept"]
            extras = extras or Extras.open(self.folder, W_dec_FE, head, self.windows, kept, device, near)
            extra = extras.of(part, latents, settings, self._at_once)
            describe_part(self.folder, part, self.num_latents, settings, extra, text, at_once=self._at_once)
        self.together()

    def seal(self, facts: dict[str, Any], settings: Settings) -> None:
        """Write the manifest, and remove what is not needed any more.

        Args:
            facts: what the manifest says besides numbers and files.
        """
        told = self._consumers.gather_json([self._sums(), self._counts(settings.few)])
        if self._consumers.rank == 0:
            sums = sorted((name, each) for part, _ in told for name, each in part.items())
            postings, silent, rare = (sum(each) for each in zip(*(counts for _, counts in told), strict=True))
            found: dict[str, Any] = {"postings": postings, "silent": silent, "too_rare": rare}
            found |= facts | self._numbers()
            found |= {name: getattr(settings, name) for name in ("top", "bins", "each", "few")}
            files, footers = ({name: each[n] for name, each in sums} for n in (0, 1))
            Manifest(**found, files=files, footers=footers).write(self.folder)
            shutil.rmtree(self.folder / WORK, ignore_errors=True)
        self.together()

    def mine(self) -> Iterator[tuple[int, range]]:
        """Yield the parts that this rank writes, with their latents.

        Raises:
            Preempted: a signal asked to stop.
        """
        each = part_latents(self.num_latents)
        for part in range(self._consumers.rank, parts(self.num_latents), self._consumers.size):
            check_stop(self._stop, self._control)
            yield part, range(part * each, min((part + 1) * each, self.num_latents))

    def together(self) -> None:
        """Wait until all consumers are here, however long one of them takes.

        Raises:
            Preempted: a rank was asked to stop.
            TransportError: a rank failed.
        """
        self._meetings += 1
        here = f"tables/{self._meetings}"
        self._control.add(here, 1)
        while self._control.add(here, 0) < self._consumers.size:
            check_stop(self._stop, self._control)
            if failure := self._control.failure():
                raise TransportError(failure)
            pause(POLL_S)

    def _numbers(self) -> dict[str, int]:
        return read_json(self.folder / WORK / NUMBERS) or {}

    def _sums(self) -> dict[str, tuple[str, str]]:
        """Return the checksums of the files that this rank wrote, see `sums_of`, by path in the folder."""
        tables = (POSTINGS, LATENTS, EXAMPLES)
        paths = [part_file(self.folder, table, part) for part, _ in self.mine() for table in tables]
        if self._consumers.rank == 0:
            paths += [self.folder / TOKENS, self.folder / DOCUMENTS]
        return {path.relative_to(self.folder).as_posix(): sums_of(path) for path in paths}

    def _counts(self, few: int) -> tuple[int, int, int]:
        """Return the codes of this rank's parts, how many of their latents are silent, and how many rare."""
        postings = silent = rare = 0
        for part, _ in self.mine():
            count = pq.read_table(part_file(self.folder, LATENTS, part), columns=["count"])["count"]
            postings += pc.sum(count).as_py()
            silent += pc.sum(pc.equal(count, 0)).as_py()
            rare += pc.sum(pc.and_(pc.greater(count, 0), pc.less(count, few))).as_py()
        return postings, silent, rare
