"""The codes of an atlas: those of latents split over ranks, the same to the bit for any split and any batch.

A product of matrices rounds as its shape has it. So it only proposes: every code is a product of two vectors,
and a latent is selected by these.

Letters: as core.types; f latents of a tile, C candidates of a row.
"""

from types import ModuleType

import torch
from torch import Tensor

from sae_dist.dictionary.selection import select
from sae_dist.dictionary.sparse import Pairs
from sae_dist.distributed.collectives import Axis
from sae_dist.export.exported import LATENT_TILE, ExportedSae, SparseCodes
from sae_dist.kernels.reference import pair_rows

SPARE = 8
"""Candidates beyond k; where these do not prove that the k best are among them, there are four times more."""


class ShardEncoder:
    """The latents of one rank, and their codes.

    Args:
        sae: this rank's latents, all of them in memory.
        shard: the ranks that hold the others.
    """

    def __init__(self, sae: ExportedSae, shard: Axis, kernels: ModuleType):
        self._sae, self._shard, self._kernels = sae, shard, kernels
        self._norm = float(sae.W_enc_FD.norm(dim=1).max())

    @torch.no_grad()
    def codes(self, x_BD: Tensor) -> SparseCodes:
        """Return this rank's codes above zero; every rank of the shard axis calls it with the same rows."""
        sae = self._sae
        z_BD = (x_BD if sae.transcoder else x_BD - sae.b_dec_E).contiguous()
        if sae.form.codes is not None:
            return self._open(z_BD)
        assert sae.k is not None
        score_BC, latent_BC = self._best(z_BD, min(sae.k, sae.num_latents))
        pairs = Pairs.of(select(score_BC, latent_BC, sae.k, self._shard, self._kernels))
        _, (_, found) = pairs.split((pairs.score_P > 0).long(), 2)
        return SparseCodes(found.latent_P, found.score_P, found.offsets_B)

    def _best(self, z_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k best of this rank's latents in each row, (score descending, latent ascending)."""
        score_BK = z_BD.new_empty(len(z_BD), k)
        latent_BK = torch.empty(len(z_BD), k, dtype=torch.int64, device=z_BD.device)
        row_B, spare = torch.arange(len(z_BD), device=z_BD.device), SPARE
        while len(row_B):
            score, latent, certain = self._candidates(z_BD[row_B], k, spare)
            score_BK[row_B], latent_BK[row_B] = score, latent
            row_B, spare = row_B[~certain], 4 * spare
        return score_BK, latent_BK

    def _candidates(self, z_BD: Tensor, k: int, spare: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the k best of k + spare candidates, and in which rows they are surely the best of all."""
        sae, count = self._sae, min(k + spare, self._sae.num_latents)
        assert sae.b_enc_F is not None
        proposed_BC, latent_BC = self._kernels.encode_topk(z_BD, sae.W_enc_FD, sae.b_enc_F, count)
        least_B = proposed_BC[:, -1]
        latent_BC = latent_BC.sort(dim=1).values
        offsets_B = torch.arange(0, latent_BC.numel(), count, device=z_BD.device)
        score_BC = self._products(latent_BC.flatten(), offsets_B, z_BD).view(latent_BC.shape)
        score_BC = score_BC + sae.b_enc_F[latent_BC]
        # Stable: among equal scores the lower latent stays first.
        score_BC, place_BC = score_BC.sort(dim=1, descending=True, stable=True)
        certain_B = score_BC[:, k - 1] > least_B + self._rounding(z_BD, least_B)
        if count == sae.num_latents:
            certain_B = torch.ones_like(certain_B)
        return score_BC[:, :k], latent_BC.gather(1, place_BC)[:, :k], certain_B

    def _open(self, z_BD: Tensor) -> SparseCodes:
        """Return the codes of a form that selects nothing."""
        sae, codes = self._sae, self._sae.form.codes
        assert codes is not None
        parts: list[tuple[Tensor, Tensor]] = []
        for first in range(0, sae.num_latents, LATENT_TILE):
            tile = slice(first, first + LATENT_TILE)
            own = {name: value[tile] for name, value in sae.vectors.items()}
            score_Bf = z_BD @ sae.W_enc_FD[tile].T
            # A code grows with its score: whatever rounding may lift above zero is a candidate.
            score_Bf += self._rounding(z_BD, score_Bf.amax(1).abs())[:, None]
            row_P, latent_P = (codes(score_Bf, own) > 0).nonzero(as_tuple=True)
            parts.append((row_P, latent_P + first))
        row_P, latent_P = (torch.cat(each) for each in zip(*parts, strict=True))
        order_P = row_P.argsort(stable=True)
        row_P, latent_P = row_P[order_P], latent_P[order_P]
        score_P = self._products(latent_P, _offsets(row_P, len(z_BD)), z_BD)
        code_P = codes(score_P, {name: value[latent_P] for name, value in sae.vectors.items()})
        fires_P = code_P > 0
        row_P = row_P[fires_P]
        return SparseCodes(latent_P[fires_P], code_P[fires_P], _offsets(row_P, len(z_BD)))

    def _products(self, latent_P: Tensor, offsets_B: Tensor, z_BD: Tensor) -> Tensor:
        """Return W_enc[f] . z[b] of each pair, the same whatever other pairs there are."""
        return self._kernels.latent_gradient(latent_P, offsets_B, z_BD, self._sae.W_enc_FD)

    def _rounding(self, z_BD: Tensor, score_B: Tensor) -> Tensor:
        """Return by how much two ways of computing a score may differ [B]."""
        eps = torch.finfo(z_BD.dtype).eps
        return 2 * eps * (z_BD.shape[1] * self._norm * z_BD.norm(dim=1) + score_B.abs())


def rows_of(codes: SparseCodes) -> Tensor:
    """Return the row of each code [P]."""
    return pair_rows(codes.offsets_B, len(codes.latent_P))


def _offsets(row_P: Tensor, rows: int) -> Tensor:
    counts_B = torch.bincount(row_P, minlength=rows)
    return counts_B.cumsum(0) - counts_B
