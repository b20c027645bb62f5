"""The parts of activations: what each latent, the bias and the error of a dictionary add.

    y = sum over latents of z_i d_i  +  b_dec  +  e          (and W_skip x in a transcoder with skip)

With u = y - b_dec, the share of a latent is z_i d_i . u / |u|^2, that of the error e . u / |u|^2; shares of a
token add up to 1, and some may be negative. FVU of a token is |e|^2 / |u|^2. Letters: as core.types.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_dist.interpret.codes import Codes
from sae_dist.interpret.dictionary import Dictionary

PART_BYTES = 64 << 20


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        pieces: the text of each.
        special_S: they are no activations in training.
        outlier_S: their activation is of outlying norm.
        counted_S: latents are ranked by them.
        norm_S: of the activation.
    """

    ids_S: Tensor
    pieces: list[str]
    special_S: Tensor
    outlier_S: Tensor
    counted_S: Tensor
    norm_S: Tensor


@dataclass(frozen=True)
class Parts:
    """The parts of the activations of a text, on the host.

    Attributes:
        share_P, effect_P: of each code; None: there are no direct effects.
        error_SE: what the dictionary does not explain.
        square_S, error_square_S: |u|^2 and |e|^2.
    """

    codes: Codes
    share_P: Tensor
    effect_P: Tensor | None
    error_SE: Tensor
    error_share_S: Tensor
    skip_share_S: Tensor
    square_S: Tensor
    error_square_S: Tensor

    @property
    def fvu_S(self) -> Tensor:
        """The fraction of variance unexplained of each token; NaN where the activation is the bias."""
        return self.error_square_S / self.square_S

    def fvu(self, counted_S: Tensor) -> float | None:
        """Return the fraction of variance unexplained of some tokens together; None: there is none."""
        total = float(self.square_S[counted_S].sum())
        return float(self.error_square_S[counted_S].sum()) / total if total else None


def parts_of(d: Dictionary, codes: Codes, x_SD: Tensor, y_SE: Tensor, grad_SE: Tensor | None) -> Parts:
    """Return the parts of activations.

    Args:
        grad_SE: of the next token's logits; None: there are no direct effects.
    """
    y_SE = y_SE.to(d.dtype)
    x_SD = x_SD.to(d.dtype)
    error_SE = y_SE - d.decode(codes, x_SD)
    u_SE = y_SE.double() - d.b_dec.double()
    square_S = u_SE.square().sum(1)
    share_P = _along(d.W_dec, codes, u_SE) / square_S[codes.rows]
    effect_P = None if grad_SE is None else _along(d.W_dec, codes, grad_SE.to(u_SE.device).double()).cpu()
    skip_S = torch.zeros_like(square_S)
    if d.sae.W_skip_ED is not None:
        skip_S = ((x_SD @ d.sae.W_skip_ED.T).double() * u_SE).sum(1) / square_S
    return Parts(
        codes=codes.to("cpu"),
        share_P=share_P.cpu(),
        effect_P=effect_P,
        error_SE=error_SE.cpu(),
        error_share_S=((error_SE.double() * u_SE).sum(1) / square_S).cpu(),
        skip_share_S=skip_S.cpu(),
        square_S=square_S.cpu(),
        error_square_S=error_SE.double().square().sum(1).cpu(),
    )


def _along(W_FE: Tensor, codes: Codes, direction_SE: Tensor) -> Tensor:
    """Return z_i d_i . v of each code [P], for the vector v of its row; decoder rows are read in parts."""
    step = max(1, PART_BYTES // (W_FE.shape[1] * 8))
    row_P, latent_P = codes.rows, codes.latents
    found = [
        (W_FE[latent_P[first : first + step]].double() * direction_SE[row_P[first : first + step]]).sum(1)
        for first in range(0, len(latent_P), step)
    ]
    return (torch.cat(found) if found else direction_SE.new_zeros(0)) * codes.values.double()
