"""The sparse codes of rows of activations: compressed sparse rows (CSR), as `Dictionary.encode` returns them.

Letters: as core.types.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import gib
from sae_dist.export.exported import SparseCodes

DENSE_BYTES = 2**30
"""The largest dense tensor of codes that is made without being asked for."""


@dataclass(frozen=True)
class Codes:
    """The codes above zero of B rows, sorted by row, in a row by the order in which they were found.

    Attributes:
        indptr: int64 [B + 1]; the codes of row b are number indptr[b] to indptr[b + 1].
        latents: int64 [P].
        values: float [P]; with gradients where the rows had them.
        num_latents: the number F of latents of the dictionary.
        leading: the shape that the rows had, without the width: `[sequences, tokens]`, or `[rows]`.
    """

    indptr: Tensor
    latents: Tensor
    values: Tensor
    num_latents: int
    leading: tuple[int, ...]

    @classmethod
    def of(cls, codes: SparseCodes, num_latents: int, leading: tuple[int, ...]) -> "Codes":
        """Return the codes that a dictionary found."""
        end = codes.offsets_B.new_tensor([len(codes.latent_P)])
        indptr = torch.cat([codes.offsets_B, end])
        return cls(indptr, codes.latent_P, codes.value_P, num_latents, leading)

    @property
    def rows(self) -> Tensor:
        """The row of each code, int64 [P]."""
        counts = self.indptr.diff()
        return torch.repeat_interleave(counts, output_size=len(self.latents))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense tensor that these codes stand for: `leading` and the number of latents."""
        return (*self.leading, self.num_latents)

    @property
    def l0(self) -> Tensor:
        """The number of codes above zero of each row, int64, in the shape `leading`."""
        return self.indptr.diff().view(self.leading)

    def __len__(self) -> int:
        """Return the number B of rows."""
        return len(self.indptr) - 1

    def __getitem__(self, row: int) -> "tuple[Tensor, Tensor]":
        """Return the latents and the values of one row, greatest value first.

        Raises:
            IndexError: there are fewer rows.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        own = slice(int(self.indptr[row]), int(self.indptr[row + 1]))
        order = self.values[own].argsort(descending=True, stable=True)
        return self.latents[own][order], self.values[own][order]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the latents and the values of each row."""
        return (self[row] for row in range(len(self)))

    def of_latent(self, latent: int) -> Tensor:
        """Return the codes of one latent on every row, zeros included, in the shape `leading`."""
        mine = self.latents == latent
        found = self.values.new_zeros(len(self))
        return found.index_add(0, self.rows[mine], self.values[mine]).view(self.leading)

    def with_values(self, values: Tensor) -> "Codes":
        """Return the codes of the same latents with other values [P]."""
        return replace(self, values=values)

    def dense(self, limit: int = DENSE_BYTES) -> Tensor:
        """Return the codes with their zeros, `leading` and F.

        Raises:
            ConfigError: that would be more than `limit` bytes.
        """
        size = len(self) * self.num_latents * self.values.element_size()
        if size > limit:
            raise ConfigError(
                f"dense() of {len(self):,} rows and {self.num_latents:,} latents is {gib(size)}; use rows, "
                f"latents and values, fewer rows, or dense(limit={size})"
            )
        found = self.values.new_zeros(len(self), self.num_latents)
        found = found.index_put((self.rows, self.latents), self.values, accumulate=True)
        return found.view(self.shape)

    def sparse_tensor(self) -> Tensor:
        """Return the codes as a torch tensor of layout sparse_csr, [B, F]."""
        return torch.sparse_csr_tensor(self.indptr, self.latents, self.values, (len(self), self.num_latents))

    def to(self, device: torch.device | str) -> "Codes":
        """Return the codes on another device."""
        indptr, latents, values = (each.to(device) for each in (self.indptr, self.latents, self.values))
        return Codes(indptr, latents, values, self.num_latents, self.leading)

    def plain(self) -> SparseCodes:
        """Return the codes as `ExportedSae.decode` reads them."""
        return SparseCodes(self.latents, self.values, self.indptr[:-1])

    def __repr__(self) -> str:
        """Describe the codes in a line."""
        each = len(self.latents) / max(len(self), 1)
        return f"Codes({len(self):,} rows, {self.num_latents:,} latents, {each:.1f} codes a row)"
