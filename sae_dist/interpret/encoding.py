"""The encoding of a dictionary in use: as in evaluation where its encoder fits into memory, else in tiles.

Letters: as core.types.
"""

from dataclasses import replace
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from sae_dist.config.triton import triton_problem
from sae_dist.export.exported import ExportedSae, SparseCodes
from sae_dist.interpret.codes import Codes
from sae_dist.kernels.choose import choose_kernels
from sae_dist.kernels.torch_backend import topk_rows
from sae_dist.llm.fit import memory_bytes

IN_MEMORY = 0.25
"""The share of the machine's memory that a copy of the encoder may take."""
TILE_BYTES = 64 << 20


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
