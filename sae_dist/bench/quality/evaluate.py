"""The one evaluator: FVU, dead latents and L0 of any contestant's dictionary, in fp32, in the file's space.

Letters: as core.types.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_dist.bench.quality.contestants import TRAINED
from sae_dist.export.saelens import load_exported

ROWS = 2048
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass
class Weights:
    """The dictionary of a trial.

    x_hat = (relu(topk_k((scale x - b_dec) W_enc^T + b_enc)) W_dec + b_dec) / scale
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int
    scale: float = 1.0

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that weights.safetensors holds."""
        return {name: getattr(self, name).float().contiguous() for name in NAMES}

    @staticmethod
    def load(folder: Path, device: str) -> "Weights":
        """Load the weights that a trial left."""
        trained = json.loads((folder / TRAINED).read_text(encoding="utf-8"))
        tensors = load_file(folder / "weights.safetensors", device=device)
        return Weights(**tensors, k=trained["k"], scale=trained["scale"])

    def apply(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes and their latents [R, K], and the reconstruction [R, D]."""
        scores_RF = torch.addmm(self.b_enc, self.scale * x_RD - self.b_dec, self.W_enc.T)
        val_RK, idx_RK = scores_RF.topk(self.k, dim=1)
        val_RK = val_RK.relu()
        x_hat_RD = embedding_bag(idx_RK, self.W_dec, mode="sum", per_sample_weights=val_RK) + self.b_dec
        return val_RK, idx_RK, x_hat_RD / self.scale


def weights_of_export(folder: Path) -> Weights:
    """Read an export of sae_dist; no other function knows its class."""
    sae = load_exported(folder)
    assert sae.b_enc_F is not None and sae.k is not None
    return Weights(sae.W_enc_FD, sae.b_enc_F, sae.W_dec_FE, sae.b_dec_E, k=sae.k)


def measure(weights: Weights, rows: np.ndarray | Tensor, device: str) -> dict[str, Any]:
    """Measure quality over all rows of a file, [rows, D].

    fvu   sum of squared errors / sum of squared deviations from the rows' mean; None if it is not finite
    dead  share of latents that are above zero on not one row
    l0    mean number of codes above zero
    """
    rows = np.asarray(rows)
    error = l0 = 0.0
    fired_F = torch.zeros(len(weights.b_enc), dtype=torch.bool, device=device)
    deviation = _deviation(rows)
    with torch.no_grad():
        for first in range(0, len(rows), ROWS):
            x_RD = torch.from_numpy(rows[first : first + ROWS].copy()).to(device)
            val_RK, idx_RK, x_hat_RD = weights.apply(x_RD)
            error += float((x_RD - x_hat_RD).square().sum(dtype=torch.float64))
            l0 += float((val_RK > 0).sum())
            fired_F[idx_RK[val_RK > 0]] = True
    fvu = error / deviation
    return {
        "fvu": fvu if np.isfinite(fvu) else None,
        "dead": float((~fired_F).double().mean()),
        "l0": l0 / len(rows),
        "test_rows": len(rows),
    }


def _deviation(rows: np.ndarray) -> float:
    """Sum squared deviations from the mean, in two passes, in float64."""
    blocks = [rows[first : first + 65536] for first in range(0, len(rows), 65536)]
    mean_D = sum(block.sum(0, dtype=np.float64) for block in blocks) / len(rows)
    return float(sum(np.square(block - mean_D).sum(dtype=np.float64) for block in blocks))
