"""The choice of the latents to show, and their firings on held-out tokens, in one streaming pass.

Letters: as core.types.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_dist.core.errors import DataError
from sae_dist.evaluation.report.firing import Firing
from sae_dist.evaluation.report.read import Read
from sae_dist.export.exported import Encode, ExportedSae
from sae_dist.kernels.reference import pair_rows

SHOWN = 10
FEW_FIRINGS = 10


@dataclass(frozen=True)
class Group:
    """A group of latents, most frequent first, and why they were chosen."""

    name: str
    why: str
    latents: tuple[int, ...]


def firing_rates(sae: ExportedSae, encode: Encode, reads: Iterator[Read]) -> tuple[Tensor, int]:
    """Measure the share of rows on which each latent fires [F]; return it and the number of rows.

    Raises:
        DataError: there were no rows.
    """
    fired_F = sae.W_enc_FD.new_zeros(sae.num_latents, dtype=torch.int64)
    rows = 0
    for read in reads:
        codes = sae.encode(read.x_RD.to(sae.W_enc_FD), encode)
        fired_F += torch.bincount(codes.latent_P, minlength=sae.num_latents)
        rows += len(read.x_RD)
    if not rows:
        raise DataError("report: no held-out activations; give more text or rows")
    return (fired_F.double() / rows).float().cpu(), rows


def choose(rate_F: Tensor, rows: int) -> list[Group]:
    """Choose ten dense, ten median and ten rare latents by how often they fire; of few latents a third each.

    The rare ones fired at least FEW_FIRINGS times on the `rows`, if there are enough of such latents: one
    that fired once has a single context to show.
    """
    order_F = torch.argsort(-rate_F, stable=True)
    alive = [n for n in order_F.tolist() if rate_F[n] > 0]
    often = [n for n in alive if rate_F[n] * rows >= FEW_FIRINGS - 0.5]
    floor = len(often) >= 3 * SHOWN
    alive, fewer = (often, len(alive) - len(often)) if floor else (alive, 0)
    size = min(SHOWN, -(-len(alive) // 3))
    rare_size = min(size, len(alive) - size)
    inner = alive[size : len(alive) - rare_size]
    middle = min(max(len(alive) // 2 - size // 2 - size, 0), max(len(inner) - size, 0))
    silent = int((rate_F == 0).sum())
    least = f" of those that fired at least {FEW_FIRINGS} times; {fewer:,} fired less often" if floor else ""
    return [
        Group("Dense", "those that fire most often", tuple(alive[:size])),
        Group("Median", "those in the middle by how often they fire", tuple(inner[middle : middle + size])),
        Group(
            "Rare",
            f"those that fire least often{least}; {silent:,} never fired",
            tuple(alive[len(alive) - rare_size :]),
        ),
    ]


def collect(
    sae: ExportedSae, encode: Encode, reads: Iterator[Read], latents: list[int]
) -> tuple[dict[int, Firing], int]:
    """Collect the firings of some latents, holding only their codes; return them and the number of rows."""
    firings = [Firing(latent) for latent in latents]
    column_F = torch.full((sae.num_latents,), -1, device=sae.W_enc_FD.device)
    column_F[latents] = torch.arange(len(latents), device=column_F.device)
    rows = 0
    for read in reads:
        rows += len(read.x_RD)
        codes = sae.encode(read.x_RD.to(sae.W_enc_FD), encode)
        column_P = column_F[codes.latent_P]
        mine_P = column_P >= 0
        row_P = pair_rows(codes.offsets_B, len(codes.latent_P))[mine_P].cpu().numpy()
        value_P = codes.value_P[mine_P].float().cpu().numpy()
        number_P = column_P[mine_P].cpu().numpy()
        for number, firing in enumerate(firings):
            its_P = number_P == number
            if its_P.any():
                firing.add(read, row_P[its_P], value_P[its_P])
    return dict(zip(latents, firings, strict=True)), rows
