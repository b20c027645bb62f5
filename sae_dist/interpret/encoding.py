"""The encoding of a dictionary in use: as in evaluation where its encoder fits into memory, else in tiles.

Letters: as core.types; I a few latents.
"""

from dataclasses import replace
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import linear

from sae_dist.config.triton import triton_problem
from sae_dist.export.exported import ExportedSae, SparseCodes
from sae_dist.interpret.codes import Codes
from sae_dist.interpret.rivals import Rivals
from sae_dist.interpret.some import SomeLatents
from sae_dist.kernels.choose import choose_kernels
from sae_dist.kernels.torch_backend import topk_rows
from sae_dist.llm.fit import memory_bytes

IN_MEMORY = 0.25
"""The share of the machine's memory that a copy of the encoder may take."""
TILE_BYTES = 64 << 20
FEW_SCORES = 1 << 20
"""So many scores, a latent of a row each, are made at once."""


class Encoding:
    """The encoder and decoder of a dictionary, prepared when they are first used."""

    def __init__(self, sae: ExportedSae):
        self._sae = sae

    @cached_property
    def kernels(self) -> ModuleType:
        """The kernels for the dictionary's device."""
        on_gpu = self._sae.W_dec_FE.device.type == "cuda" and triton_problem() is None
        return choose_kernels("triton" if on_gpu else "torch")

    @property
    def fits(self) -> bool:
        """The answer to: does the encoder fit into memory?"""
        sae = self._sae
        return sae.W_enc_FD.nbytes <= IN_MEMORY * memory_bytes(sae.W_enc_FD.device.type)

    @cached_property
    def _held(self) -> ExportedSae | None:
        """The dictionary with its encoder in memory, as evaluation has it; None: it is too large."""
        sae = self._sae
        if sae.W_enc_FD.is_contiguous():
            return sae
        if not self.fits:
            return None
        return replace(sae, W_enc_FD=sae.W_enc_FD.contiguous())

    def codes(self, x_BD: Tensor) -> SparseCodes:
        """Return the codes above zero; with gradients if the rows have them."""
        with torch.no_grad():
            found = self._exact(x_BD.detach())
        if not (torch.is_grad_enabled() and x_BD.requires_grad):
            return found
        # The values are those of the selection to the bit; only their gradient is that of the formula.
        smooth_P = self._formula(x_BD, found)
        return replace(found, value_P=found.value_P + (smooth_P - smooth_P.detach()))

    def codes_of(self, some: SomeLatents, x_BD: Tensor) -> Tensor | None:
        """Return the codes of a few latents [B, I]; None: all are 0. See `Dictionary.codes_of`."""
        if self._sae.form.codes is not None:
            return some.codes(x_BD)
        # A latent whose score is not above zero is not selected, whatever the others' scores are.
        best_B = some.scores(x_BD).amax(1)
        open_B = best_B > 0
        if not bool(open_B.any()):
            return None
        open_B[open_B.clone()] = ~self._surpassed(x_BD[open_B], best_B[open_B])
        if not bool(open_B.any()):
            return None
        codes = Codes.of(self._exact(x_BD[open_B]), self._sae.num_latents, (-1,))
        code_BI = x_BD.new_zeros(len(x_BD), len(some.latents))
        code_BI[open_B] = torch.stack([codes.of_latent(each) for each in some.latents], 1)
        return code_BI

    def _surpassed(self, x_BD: Tensor, score_B: Tensor) -> Tensor:
        """Return in which rows at least k latents' scores are above a score by more than rounding [B].

        A product and a comparison tell it for few rows, as generated tokens are; else it is not known.
        """
        held = self._held
        if held is None or held.k is None or len(x_BD) * held.num_latents > FEW_SCORES:
            return torch.zeros_like(score_B, dtype=torch.bool)
        z_BD = x_BD if held.transcoder else x_BD - held.b_dec_E
        score_BF = linear(z_BD, held.W_enc_FD, held.b_enc_F)
        # Each of the two scores is off by so much at most, in whatever order its sum was taken.
        off_B = torch.finfo(x_BD.dtype).eps * (held.width * self._norm * z_BD.norm(dim=1) + score_B)
        return (score_BF > (score_B + 2 * off_B)[:, None]).sum(1) >= held.k

    @cached_property
    def _norm(self) -> float:
        """The norm of the encoder's longest row."""
        return float(self._sae.W_enc_FD.norm(dim=1).max())

    @cached_property
    def rivals(self) -> Rivals | None:
        """A sample of a TopK dictionary's latents; None: it is too small for one, or too large for memory."""
        held = self._held
        return Rivals.of(held, self._norm) if held is not None and held.k is not None else None

    def decoded(self, codes: Codes, x_BD: Tensor) -> Tensor:
        """Return the reconstruction of codes [B, E]; `x_BD` counts only with a skip connection."""
        return self._sae.decode(codes.plain(), x_BD)

    def _exact(self, x_BD: Tensor) -> SparseCodes:
        held = self._held
        if held is not None:
            return held.encode(x_BD, self.kernels.encode_topk)
        if self._sae.form.codes is None:
            return self._sae.encode(x_BD, self._topk_by_tiles)
        return self._sae.encode(x_BD, _unused)

    def _topk_by_tiles(self, x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the best latents of each row, with one tile of the encoder in memory at a time."""
        step = max(k, TILE_BYTES // (W_FD.shape[1] * W_FD.element_size()))
        value, index = x_BD.new_empty(len(x_BD), 0), torch.empty(len(x_BD), 0, dtype=torch.int64)
        index = index.to(x_BD.device)
        for first in range(0, len(W_FD), step):
            tile = W_FD[first : first + step].contiguous()
            found = self.kernels.encode_topk(x_BD, tile, b_F[first : first + step], min(k, len(tile)))
            # Earlier tiles stand first, so that among equals the lower index wins.
            value, index = torch.cat([value, found[0]], 1), torch.cat([index, found[1] + first], 1)
            value, place = topk_rows(value, min(k, value.shape[1]))
            index = index.gather(1, place)
        return value, index

    def _formula(self, x_BD: Tensor, codes: SparseCodes) -> Tensor:
        """Return the values of selected codes by their formula [P], which autograd can differentiate."""
        sae, latent_P = self._sae, codes.latent_P
        counts_B = torch.diff(codes.offsets_B, append=codes.offsets_B.new_tensor([len(latent_P)]))
        row_P = torch.repeat_interleave(counts_B, output_size=len(latent_P))
        z_BD = x_BD if sae.transcoder else x_BD - sae.b_dec_E
        score_P = (z_BD[row_P] * sae.W_enc_FD[latent_P]).sum(1)
        # Of several biases, a code has the one whose ratio multiplies the score.
        bias, ratio = max(sae.form.biases.items(), key=lambda each: each[1] is not None)
        own = sae.vectors
        return (score_P if ratio is None else score_P * own[ratio][latent_P].exp()) + own[bias][latent_P]


def _unused(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int) -> tuple[Tensor, Tensor]:
    raise AssertionError("only TopK selects by a kernel")
