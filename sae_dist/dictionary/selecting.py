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
from sae_dist.dictionary.base import Dictionary, Setting
from sae_dist.dictionary.selection import select
from sae_dist.dictionary.sparse import Pairs, decode, encode

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

    def loss(self, rows_bC: Tensor, tokens: int, with_aux: bool) -> LossTerms:
        """Return one step's loss over the rows that this rank drew; see `Dictionary.loss`."""
        x_BD = self.gather_input(rows_bC)
        self.redone.zero_()
        with torch.no_grad(), self.clock("select"):
            dead_F = self.dead.mask(tokens)
            codes, dead = self.select(x_BD, dead_F if with_aux and self.cfg.aux_k else None)
            pairs = Pairs.of(codes)
        with self.clock("decode"):
            code_P = self.encode(x_BD, pairs)
            error_bE, squares = self.reconstruct(rows_bC, code_P, pairs)
            total = squares / (self.setting.rows * self.variance)

        fired_P = code_P.detach() > 0
        parts = self.parts(rows_bC, error_bE.detach().square().sum(), fired_P.sum(), dead_F)
        parts["num_redone"] = self.redone.double()
        if dead is not None:
            aux = self.aux_loss(x_BD, error_bE.detach(), dead_F, dead)
            parts["aux"] = aux.detach()
            total = total + self.cfg.aux_coefficient * aux
        self.dead.mark(pairs.latent_P, fired_P, tokens, self.dp)
        return LossTerms(total, parts)

    def encode(self, x_BD: Tensor, pairs: Pairs) -> Tensor:
        """Return the codes of `pairs`, [P], with gradients."""
        return encode(x_BD, self.W_enc, self.b_enc, self.centre(), pairs, self.kernels, self.row_terms)

    def aux_loss(self, x_BD: Tensor, error_bE: Tensor, dead_F: Tensor, dead: Found) -> Tensor:
        """Return AuxK: how badly the best dead latents explain the error that the live ones leave.

        It is scaled down when fewer than aux_k latents are dead, so that a few are not moved too far.

        Args:
            dead: the best dead latents of this shard in each row, scores padded with -inf.
        """
        aux_k = self.cfg.aux_k
        with torch.no_grad(), self.clock("select"):
            codes = select(*dead, aux_k, self.shard, self.kernels, padded=True)
            totals = self.consumers.sum(
                torch.stack([error_bE.square().sum(), (dead_F.sum() / self.dp.size).to(error_bE.dtype)])
            )
            share = (totals[1] / aux_k).clamp(max=1.0)
        with self.clock("decode"):
            pairs = Pairs.of(codes)
            partial_BE = decode(self.encode(x_BD, pairs), self.W_dec, pairs, self.kernels, self.row_terms)
            missed_bE = error_bE - self.shard.scatter_sum_rows(partial_BE)
            return share * missed_bE.square().sum() / totals[0]
