"""Statistics of each latent's codes, as the evaluation measures them, in a file beside the weights.

Letters: as core.types.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_dist.core.files import write_tensors
from sae_dist.core.sums import check_listed, listing
from sae_dist.export.exported import SparseCodes
from sae_dist.export.reading import check_shapes, read_safetensors
from sae_dist.export.saelens import SAE_CONFIG, WEIGHTS

CODES = "codes.safetensors"


@dataclass(frozen=True)
class CodeStatistics:
    """The codes of each latent on some rows.

    Attributes:
        rate_F: share of the rows on which it fires.
        mean_F: mean code over the rows on which it fires; 0: it never did.
        p999_F: the 99.9th percentile of its codes above zero; 0: it never fired.
        max_F: its greatest code.
        threshold: median over rows of the smallest code that a row has: a score above it is likely selected.
        rows: on how many rows all this was measured.
    """

    rate_F: Tensor
    mean_F: Tensor
    p999_F: Tensor
    max_F: Tensor
    threshold: float
    rows: int

    def save(self, folder: Path) -> None:
        """Write the file into an export's folder."""
        tensors = {"rate": self.rate_F, "mean": self.mean_F, "p999": self.p999_F, "max": self.max_F}
        tensors = {name: each.detach().cpu().float() for name, each in tensors.items()}
        tensors["threshold"] = torch.tensor([self.threshold])
        tensors["rows"] = torch.tensor([self.rows])
        with listing(folder, [CODES]):
            write_tensors(folder / CODES, tensors)


def load_statistics(folder: Path, num_latents: int) -> CodeStatistics | None:
    """Read the statistics beside an export's weights; None: there are none, or they are of older weights.

    Raises:
        ConfigError: the file is damaged, or of another dictionary.
    """
    path = folder / CODES
    if not path.is_file() or path.stat().st_mtime < (folder / WEIGHTS).stat().st_mtime:
        return None
    check_listed(folder, [CODES])
    found = read_safetensors(folder, CODES, SAE_CONFIG)
    names = ("rate", "mean", "p999", "max")
    shapes = {name: (num_latents,) for name in names} | {"threshold": (1,), "rows": (1,)}
    check_shapes(path, found, shapes, WEIGHTS, whole=("rows",))
    rate, mean, p999, most = (found[name] for name in names)
    return CodeStatistics(rate, mean, p999, most, float(found["threshold"]), int(found["rows"]))


BINS_PER_OCTAVE, OCTAVES, BELOW = 8, 16, 6
"""The bins of a latent's codes: over so many octaves, so many of them below the median of all first codes."""
LARGEST_HISTOGRAM = 1 << 19
"""Above so many latents the greatest code stands for the percentile: a histogram of each takes 512 bytes."""
PERCENTILES_AT_ONCE = 1 << 14
SMALLEST_CODES = 1 << 20
"""Of so many rows the smallest code is kept for its median."""
ONE_OF = 1000


class CodeSums:
    """The sums that `CodeStatistics` are made of, over batches of codes.

    The 99.9th percentile is the greatest code that a thousandth of a latent's codes reach. It is exact where
    a latent has no more than a thousand codes. Else it comes from a histogram of the logarithm: within 9 %,
    the width of a bin, and 2 % on average. That holds from a 64th to a thousand times the median of the first
    codes.
    """

    def __init__(self, num_latents: int, device: torch.device):
        self._rows = 0
        self._count_F = torch.zeros(num_latents, dtype=torch.int64, device=device)
        self._sum_F = torch.zeros(num_latents, dtype=torch.float64, device=device)
        self._max_F = torch.zeros(num_latents, device=device)
        self._bins = BINS_PER_OCTAVE * OCTAVES
        self._histogram: Tensor | None = None
        self._lowest = 0.0
        self._smallest: list[Tensor] = []
        self._smallest_kept = 0
        if num_latents <= LARGEST_HISTOGRAM:
            self._histogram = torch.zeros(num_latents * self._bins, dtype=torch.int32, device=device)

    def add(self, codes: SparseCodes) -> None:
        """Add the codes of some rows."""
        latent_P, value_P = codes.latent_P, codes.value_P.detach().float()
        self._rows += len(codes.offsets_B)
        if not len(latent_P):
            return
        self._count_F += torch.bincount(latent_P, minlength=len(self._count_F))
        self._sum_F.scatter_add_(0, latent_P, value_P.double())
        self._max_F.scatter_reduce_(0, latent_P, value_P, "amax")
        if self._smallest_kept < SMALLEST_CODES:
            self._keep_smallest(codes.offsets_B, value_P)
        if self._histogram is not None:
            if not self._lowest:
                self._lowest = float(value_P.median().clamp(min=1e-30)) * 2.0**-BELOW
            place_P = ((value_P / self._lowest).log2() * BINS_PER_OCTAVE).long().clamp(0, self._bins - 1)
            one_P = torch.ones_like(place_P, dtype=torch.int32)
            self._histogram.scatter_add_(0, latent_P * self._bins + place_P, one_P)

    def _keep_smallest(self, offsets_B: Tensor, value_P: Tensor) -> None:
        counts_B = torch.diff(offsets_B, append=offsets_B.new_tensor([len(value_P)]))
        row_P = torch.repeat_interleave(counts_B, output_size=len(value_P))
        least_B = value_P.new_full(counts_B.shape, torch.inf).scatter_reduce_(0, row_P, value_P, "amin")
        self._smallest.append(least_B[counts_B > 0])
        self._smallest_kept += len(counts_B)

    def statistics(self) -> CodeStatistics:
        """Return the statistics of all rows so far."""
        count_F = self._count_F.clamp(min=1)
        smallest = torch.cat(self._smallest) if self._smallest else self._max_F.new_zeros(1)
        return CodeStatistics(
            rate_F=(self._count_F.double() / max(self._rows, 1)).float(),
            mean_F=(self._sum_F / count_F).float(),
            p999_F=self._percentile_F(),
            max_F=self._max_F.clone(),
            threshold=float(smallest.median()),
            rows=self._rows,
        )

    def _percentile_F(self) -> Tensor:
        """Return the greatest code that a thousandth of a latent's codes reach [F]."""
        if self._histogram is None:
            return self._max_F.clone()
        parts = zip(
            self._histogram.view(-1, self._bins).split(PERCENTILES_AT_ONCE),
            self._count_F.split(PERCENTILES_AT_ONCE),
            strict=True,
        )
        found_F = torch.cat([self._within(*each) for each in parts])
        # Of up to a thousand codes the greatest alone is a thousandth of them.
        return torch.where(self._count_F <= ONE_OF, self._max_F, torch.minimum(found_F, self._max_F))

    def _within(self, count_fN: Tensor, count_f: Tensor) -> Tensor:
        """Return the percentile of some latents [f], with the codes of a bin as evenly spread in it."""
        above_fN = count_fN.flip(1).cumsum(1, dtype=torch.int64).flip(1)
        wanted_f = ((count_f + ONE_OF - 1) // ONE_OF).clamp(min=1)
        # The last bin with as many codes in it and above it as are wanted.
        place_f = ((above_fN >= wanted_f[:, None]).sum(1) - 1).clamp(min=0)
        here_f = count_fN.gather(1, place_f[:, None]).squeeze(1).clamp(min=1)
        beyond_f = above_fN.gather(1, place_f[:, None]).squeeze(1) - here_f
        share_f = (1 - (wanted_f - beyond_f - 0.5) / here_f).clamp(0, 1)
        return (self._lowest * 2.0 ** ((place_f + share_f) / BINS_PER_OCTAVE)).float()
