"""A finished dictionary, in raw activation space: what exports hold and analysis reads."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

Encode = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""`encode_topk` of a kernel backend: (x_BD, W_FD, b_F, k) -> values and indices [B, K]."""


@dataclass
class ExportedSae:
    """TopK autoencoder: codes = relu(topk_k((x - b_dec) W_enc^T + b_enc)), x_hat = codes W_dec + b_dec."""

    W_enc_FD: Tensor
    b_enc_F: Tensor
    W_dec_FD: Tensor
    b_dec_D: Tensor
    k: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def num_latents(self) -> int:
        return self.W_enc_FD.shape[0]

    @property
    def width(self) -> int:
        return self.W_enc_FD.shape[1]

    def to(self, device: torch.device) -> "ExportedSae":
        """The same dictionary on `device`."""
        return replace(
            self,
            W_enc_FD=self.W_enc_FD.to(device),
            b_enc_F=self.b_enc_F.to(device),
            W_dec_FD=self.W_dec_FD.to(device),
            b_dec_D=self.b_dec_D.to(device),
        )

    def encode(self, x_BD: Tensor, encode: Encode) -> tuple[Tensor, Tensor]:
        """Codes after ReLU and their latents, [B, K] each."""
        val_BK, idx_BK = encode(x_BD - self.b_dec_D, self.W_enc_FD, self.b_enc_F, self.k)
        return val_BK.relu(), idx_BK

    def decode(self, val_BK: Tensor, idx_BK: Tensor) -> Tensor:
        """Reconstruction [B, D] from codes."""
        return embedding_bag(idx_BK, self.W_dec_FD, mode="sum", per_sample_weights=val_BK) + self.b_dec_D


def fold_scale(
    W_enc_FD: Tensor, b_enc_F: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights that act on x as the given ones act on scale * x, the reconstruction divided by scale.

    Codes are divided by scale too; the order of the latents in TopK and the decoder rows stay.
    """
    return W_enc_FD, b_enc_F / scale, W_dec_FD, b_dec_D / scale
