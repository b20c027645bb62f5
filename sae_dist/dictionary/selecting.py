"""The loss of kinds with selected codes: few (row, latent) pairs, and only sparse operations.

    code  = relu(selected scores),  score = W_enc (x - b_dec) + b_enc
    y_hat = code W_dec + b_dec
    loss  = sum |y - y_hat|^2 / (rows * variance)  +  aux_coefficient * AuxK
    AuxK  = sum |e - e_hat|^2 / sum |e|^2, e = y - y_hat held fixed, e_hat from the k_aux best dead latents
            (Gao et al. 2024, arXiv 2406.04093, section A.2)

No tensor of [rows, latents] is ever made.

Letters: as core.types; b = B / T rows, on T shards.
"""

import torch
from torch import Tensor

from sae_dist.core.types import Codes, LossTerms
from sae_dist.dictionary import auxiliary
from sae_dist.dictionary.base import Dictionary, Setting
from sae_dist.dictionary.selection import select
from sae_dist.dictionary.sparse import Pairs, decode, encode
from sae_dist.kernels.products import products

Found = tuple[Tensor, Tensor]
"""Scores and latents of candidates, [B, K] each, best first."""


class SelectedDictionary(Dictionary):
    """A dictionary with few codes per row. A kind defines `select`, and may override `reconstruct`.

    Attributes:
        redone: rows of this step whose selection had to be scored again; see `reference.encode_topk`.
    """

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.redone = torch.zeros((), dtype=torch.int64, device=setting.device)

    def select(self, x_BD: Tensor, dead_F: Tensor | None) -> tuple[Codes, Found | None]:
        """Return the selected codes of this shard, and with `dead_F` AuxK's candidates among dead latents."""
        raise NotImplementedError

    def candidates(self, x_BD: Tensor, k: int, dead_F: Tensor | None) -> tuple[Found, Found | None]:
        """Return each row's `k` best of this shard's latents, and with `dead_F` the aux_k best dead ones."""
        with self.clock("encode"):
            if dead_F is None:
                return self.kernels.encode_topk(x_BD, self.W_enc, self.b_enc, k, self.redone), None
            aux_k = min(self.cfg.aux_k, self.F)
            return self.kernels.encode_topk_dead(x_BD, self.W_enc, self.b_enc, k, dead_F, aux_k, self.redone)

    def reconstruct(self, rows_bC: Tensor, code_P: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the error of this rank's rows [b, E], and the sum of squares that enters the loss."""
        error_bE = self.error(rows_bC, decode(code_P, self.W_dec, pairs, self.kernels, self.row_terms))
        return error_bE, error_bE.square().sum()

    def loss(self, rows_bC: Tensor, tokens: int, with_aux: bool, most_dead: int | None = None) -> LossTerms:
        """Return one step's loss over the rows that this rank drew; see `Dictionary.loss`."""
        x_BD = self.gather_input(rows_bC)
        self.redone.zero_()
        # All that were dead may have fired since: then AuxK has nothing to do.
        with_aux = with_aux and self.cfg.aux_k > 0 and most_dead != 0
        by_pairs = with_aux and not self.is_dense(most_dead)
        with torch.no_grad(), self.clock("select"):
            dead_F = self.dead.mask(tokens)
            codes, dead = self.select(x_BD, dead_F if by_pairs else None)
            pairs = Pairs.of(codes)
        with self.clock("decode"):
            code_P = self.encode(x_BD, pairs)
            error_bE, squares = self.reconstruct(rows_bC, code_P, pairs)
            total = squares / (self.setting.rows * self.variance)

        fired_P = code_P.detach() > 0
        parts = self.parts(rows_bC, error_bE.detach().square().sum(), fired_P.sum(), dead_F)
        parts["num_redone"] = self.redone.double()
        if with_aux:
            if dead is not None:
                partial_BE = self.aux_by_pairs(x_BD, dead)
            else:
                assert most_dead, "products are chosen by their number"
                partial_BE = self.aux_by_products(x_BD, dead_F, most_dead)
            aux = self.aux_loss(error_bE.detach(), dead_F, partial_BE)
            parts["aux"] = aux.detach()
            total = total + self.cfg.aux_coefficient * aux
        self.dead.mark(pairs.latent_P, fired_P, tokens, self.dp)
        # Known to the ranks when the step after the next one begins.
        parts["most_dead"] = self.dead.mask(tokens + 2 * self.setting.rows).sum()
        return LossTerms(total, parts)

    def encode(self, x_BD: Tensor, pairs: Pairs) -> Tensor:
        """Return the codes of `pairs`, [P], with gradients."""
        return encode(x_BD, self.W_enc, self.b_enc, self.centre(), pairs, self.kernels, self.row_terms)

    def is_dense(self, most_dead: int | None) -> bool:
        """Return whether AuxK goes by products: where it pays, and gradients need not be pairs."""
        if most_dead is None or self.row_terms is not None:
            return False
        return auxiliary.pays(most_dead, self.cfg.aux_k, self.W_enc.device, self.setting.tf32)

    def aux_by_pairs(self, x_BD: Tensor, dead: Found) -> Tensor:
        """Return what AuxK's codes of this shard reconstruct, [B, E], from the best dead latents."""
        with torch.no_grad(), self.clock("select"):
            codes = select(*dead, self.cfg.aux_k, self.shard, self.kernels, padded=True)
        with self.clock("decode"):
            pairs = Pairs.of(codes)
            return decode(self.encode(x_BD, pairs), self.W_dec, pairs, self.kernels, self.row_terms)

    def aux_by_products(self, x_BD: Tensor, dead_F: Tensor, most_dead: int) -> Tensor:
        """Return what AuxK's codes of this shard reconstruct, [B, E], by products over the dead latents."""
        with torch.no_grad(), self.clock("encode"):
            dead = auxiliary.DeadColumns.of(dead_F, most_dead)
            with products(tf32=self.setting.tf32):
                found = dead.candidates(x_BD, self.W_enc, self.b_enc, self.cfg.aux_k, self.kernels)
        with torch.no_grad(), self.clock("select"):
            codes = select(*found, self.cfg.aux_k, self.shard, self.kernels, padded=True)
        with self.clock("decode"):
            return auxiliary.reconstruct(
                x_BD, self.W_enc, self.b_enc, self.centre(), self.W_dec, dead, codes, self.setting.tf32
            )

    def aux_loss(self, error_bE: Tensor, dead_F: Tensor, partial_BE: Tensor) -> Tensor:
        """Return AuxK: how badly the best dead latents explain the error that the live ones leave.

        It is scaled down when fewer than aux_k latents are dead, so that a few are not moved too far.

        Args:
            partial_BE: what this shard's best dead latents reconstruct.
        """
        with torch.no_grad(), self.clock("select"):
            totals = self.consumers.sum(
                torch.stack([error_bE.square().sum(), (dead_F.sum() / self.dp.size).to(error_bE.dtype)])
            )
            share = (totals[1] / self.cfg.aux_k).clamp(max=1.0)
        with self.clock("decode"):
            missed_bE = error_bE - self.shard.scatter_sum_rows(partial_BE)
            return share * missed_bE.square().sum() / totals[0]
