"""The lists of an atlas that need more than a latent's own postings: logits, near rows, latents beside it.

Letters: as core.types; f latents of a part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_dist.atlas.describe.head import Head
from sae_dist.atlas.describe.lists import Extra
from sae_dist.atlas.describe.near import near_rows
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.describe.together import Window, latent_counts, together
from sae_dist.atlas.schema import parts


@dataclass(frozen=True)
class Extras:
    """The parts of an atlas that do not follow from a part's postings alone.

    Attributes:
        W_dec_FE: decoder rows of all latents, in memory or mapped.
        windows: the numbers of the windows, of which each has its codes by place.
        count_F: codes of each latent; kept: places that the dictionary encoded.
        device: that multiplies.
        near: find the nearest decoder rows.
    """

    folder: Path
    W_dec_FE: Tensor
    head: Head
    windows: Sequence[Window]
    count_F: np.ndarray
    kept: int
    device: torch.device
    near: bool

    @classmethod
    def open(
        cls,
        folder: Path,
        W_dec_FE: Tensor,
        head: Head,
        windows: int,
        kept: int,
        device: torch.device,
        near: bool,
    ) -> "Extras":
        """Map the windows, and count the codes of all latents."""
        count_F = latent_counts(folder, len(W_dec_FE), range(parts(len(W_dec_FE))))
        mapped = [Window.open(folder, number) for number in range(windows)]
        return cls(folder, W_dec_FE, head, mapped, count_F, kept, device, near)

    def of(self, part: int, latents: range, settings: Settings, at_once: int) -> Extra:
        """Compute the lists of a part's latents, with at most so many codes in memory at once."""
        own_fE = self.W_dec_FE[latents.start : latents.stop]
        near = None
        if self.near:
            near = near_rows(self.W_dec_FE, latents, settings.near, device=self.device)
        with_it = together(
            self.folder,
            part,
            self.windows,
            self.count_F,
            self.kept,
            drawn=settings.drawn,
            num=settings.together,
            at_once=at_once,
        )
        effects = self.head.effects(own_fE, settings.logits, self.device)
        return Extra(near=near, together=with_it, **effects)
