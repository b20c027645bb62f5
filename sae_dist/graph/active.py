"""The latents of a transcoder that fire on a prompt, and their rows alone.

Letters: as core.types; here P are the pairs of a position and a latent that fires there, sorted by both; U
latents that fire at all, I the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.some import SomeLatents


@dataclass(frozen=True)
class Active:
    """The active latents of one place.

    Attributes:
        position_P, latent_P: where, and which.
        row_P: the row of each in the matrices.
        starts: where the pairs of each position begin, and the end [S + 1].
        code_P: what each is on the prompt: W_enc x + bias, which is above 0.
        W_enc_UD, bias_U: an active latent is W_enc x + bias, whatever the kind.
        b_dec_E, W_skip_ED: the rest of the reconstruction.
        used_S1: 1 where the transcoder is used, 0 at other positions.
    """

    position_P: Tensor
    latent_P: Tensor
    row_P: Tensor
    starts: list[int]
    code_P: Tensor
    W_enc_UD: Tensor
    W_dec_UE: Tensor
    bias_U: Tensor
    b_dec_E: Tensor
    W_skip_ED: Tensor | None
    used_S1: Tensor

    @classmethod
    def of(cls, d: Dictionary, x_SD: Tensor, used_S: Tensor) -> "Active":
        """Encode the activations of a prompt.

        Args:
            used_S: at which positions codes count.
        """
        S = len(x_SD)
        codes = d.encode(x_SD[used_S].to(d.device, d.dtype))
        position_P = used_S.nonzero().squeeze(1)[codes.rows.to(used_S.device)]
        latent_P = codes.latents.to(used_S.device)
        order = torch.argsort(position_P * d.num_latents + latent_P)
        position_P, latent_P = position_P[order], latent_P[order]
        latent_U, row_P = latent_P.unique(return_inverse=True)
        some = d.some(latent_U.tolist())
        kind: Any = dict(device=x_SD.device, dtype=x_SD.dtype)
        W_enc_UD, bias_U = _affine(some)
        skip = d.sae.W_skip_ED
        counts = torch.bincount(position_P, minlength=S)
        found = cls(
            position_P=position_P,
            latent_P=latent_P,
            row_P=row_P,
            starts=[0, *counts.cumsum(0).tolist()],
            code_P=x_SD.new_zeros(0),
            W_enc_UD=W_enc_UD.to(**kind),
            W_dec_UE=some.W_dec_IE.to(**kind),
            bias_U=bias_U.to(**kind),
            b_dec_E=d.b_dec.to(**kind),
            W_skip_ED=None if skip is None else skip.to(**kind),
            used_S1=used_S[:, None].to(**kind),
        )
        object.__setattr__(found, "code_P", found.read(x_SD[None])[0])
        return found

    def _rows(self, position: int) -> tuple[slice, Tensor]:
        pairs = slice(self.starts[position], self.starts[position + 1])
        return pairs, self.row_P[pairs]

    def read(self, x_NSD: Tensor) -> Tensor:
        """Return each latent's pre-activation [N, P] at activations of the prompt's shape."""
        found = x_NSD.new_empty(len(x_NSD), len(self.row_P))
        for position in range(len(self.starts) - 1):
            pairs, rows = self._rows(position)
            found[:, pairs] = x_NSD[:, position] @ self.W_enc_UD[rows].T + self.bias_U[rows]
        return found

    def write(self, scale_NP: Tensor) -> Tensor:
        """Return sums of decoder rows [N, S, E], each times its code on the prompt and a factor; no bias."""
        N, S = len(scale_NP), len(self.starts) - 1
        found = scale_NP.new_zeros(N, S, self.W_dec_UE.shape[1])
        value_NP = scale_NP * self.code_P
        for position in range(S):
            pairs, rows = self._rows(position)
            found[:, position] = value_NP[:, pairs] @ self.W_dec_UE[rows]
        return found

    def share(self, grad_NSE: Tensor) -> Tensor:
        """Return what each latent adds to something with this gradient at the output: code * row @ grad."""
        found = grad_NSE.new_empty(len(grad_NSE), len(self.row_P))
        for position in range(len(self.starts) - 1):
            pairs, rows = self._rows(position)
            found[:, pairs] = grad_NSE[:, position] @ self.W_dec_UE[rows].T
        return found * self.code_P


def _affine(some: SomeLatents) -> tuple[Tensor, Tensor]:
    """Return rows and biases of which an active latent's code is the affine function."""
    sae = some.sae
    # Of several biases, a code has the one whose ratio multiplies the score.
    name, ratio = max(sae.form.biases.items(), key=lambda each: each[1] is not None)
    bias_U = sae.vectors[name]
    if ratio is None:
        return some.W_enc_ID, bias_U
    return some.W_enc_ID * sae.vectors[ratio].exp()[:, None], bias_U
