"""What the evaluation measured of each latent's codes, in a file beside the weights.

Letters: as core.types.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_dist.core.files import write_tensors
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
        write_tensors(folder / CODES, tensors)


def load_statistics(folder: Path, num_latents: int) -> CodeStatistics | None:
    """Read the statistics beside an export's weights; None: there are none, or they are of older weights.

    Raises:
        ConfigError: the file is damaged, or of another dictionary.
    """
    path = folder / CODES
    if not path.is_file() or path.stat().st_mtime < (folder / WEIGHTS).stat().st_mtime:
        return None
    found = read_safetensors(folder, CODES, SAE_CONFIG)
    names = ("rate", "mean", "p999", "max")
    shapes = {name: (num_latents,) for name in names} | {"threshold": (1,), "rows": (1,)}
    check_shapes(path, found, shapes, WEIGHTS)
    rate, mean, p999, most = (found[name] for name in names)
    return CodeStatistics(rate, mean, p999, most, float(found["threshold"]), int(found["rows"]))


BINS_PER_OCTAVE, OCTAVES = 4, 16
LARGEST_HISTOGRAM = 1 << 22
"""Above so many latents the greatest code stands for the percentile: a histogram of each takes 256 bytes."""
TOP = 0.001


class CodeSums:
    """The sums that `CodeStatistics` are made of, over batches of codes.

    Percentiles come from histograms of the logarithm, four bins an octave, with codes taken as evenly spread
    within a bin: within 5 % of the exact ones where a latent fires a thousand times.
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
        if num_latents <= LARGEST_HISTOGRAM:
            self._histogram = torch.zeros(num_latents * self._bins, dtype=torch.int32, device=device)

    def add(self, codes: SparseCodes) -> None:
        """Add the codes of some rows."""
        latent_P, value_P = codes.latent_P, codes.value_P.detach().float()
        F, B = len(self._count_F), len(codes.offsets_B)
        self._rows += B
        if not len(latent_P):
            return
        self._count_F += torch.bincount(latent_P, minlength=F)
        self._sum_F.index_add_(0, latent_P, value_P.double())
        self._max_F.scatter_reduce_(0, latent_P, value_P, "amax")
        counts_B = torch.diff(codes.offsets_B, append=codes.offsets_B.new_tensor([len(latent_P)]))
        row_P = torch.repeat_interleave(counts_B, output_size=len(latent_P))
        least_B = value_P.new_full((B,), torch.inf).scatter_reduce_(0, row_P, value_P, "amin")
        self._smallest.append(least_B[counts_B > 0])
        if self._histogram is not None:
            if not self._lowest:
                self._lowest = float(value_P.median().clamp(min=1e-30)) * 2.0 ** (-OCTAVES / 2)
            place_P = ((value_P / self._lowest).log2() * BINS_PER_OCTAVE).long().clamp(0, self._bins - 1)
            one_P = torch.ones_like(place_P, dtype=torch.int32)
            self._histogram.index_add_(0, latent_P * self._bins + place_P, one_P)

    def statistics(self) -> CodeStatistics:
        """Return the statistics of all rows so far."""
        count_F = self._count_F.clamp(min=1)
        smallest = torch.cat(self._smallest) if self._smallest else self._max_F.new_zeros(1)
        return CodeStatistics(
            rate_F=(self._count_F.double() / max(self._rows, 1)).float(),
            mean_F=(self._sum_F / count_F).float(),
            p999_F=self._percentile_F(),
            max_F=self._max_F.clone(),
            threshold=float(smallest.median()) if len(smallest) else 0.0,
            rows=self._rows,
        )

    def _percentile_F(self) -> Tensor:
        """Return the code that a thousandth of a latent's codes exceed [F], at most its greatest."""
        if self._histogram is None:
            return self._max_F.clone()
        count_FN = self._histogram.view(-1, self._bins)
        above_FN = count_FN.flip(1).cumsum(1, dtype=torch.int64).flip(1)
        wanted_F = (self._count_F.double() * TOP).clamp(min=1)
        # The last bin with as many codes in it and above it as are wanted.
        place_F = ((above_FN >= wanted_F[:, None]).sum(1) - 1).clamp(min=0)
        here_F = count_FN.gather(1, place_F[:, None]).squeeze(1).clamp(min=1)
        beyond_F = above_FN.gather(1, place_F[:, None]).squeeze(1) - here_F
        share_F = 1 - (wanted_F - beyond_F).clamp(min=0) / here_F
        value_F = self._lowest * 2.0 ** ((place_F + share_F) / BINS_PER_OCTAVE)
        found_F = torch.minimum(value_F.float(), self._max_F)
        # Few codes: a thousandth of them is less than one.
        found_F = torch.where(self._count_F * TOP <= 1, self._max_F, found_F)
        return torch.where(self._count_F > 0, found_F, 0.0)
