"""How well a dictionary reconstructs held-out activations, in one streaming pass in raw space.

Letters: R rows of a batch, D width, F latents, K active latents per row.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from sae_dist.core.config import RunConfig
from sae_dist.core.counts import parse_count
from sae_dist.core.errors import DataError
from sae_dist.export.exported import Encode, ExportedSae

DEAD_TOKENS = 500_000
UNTRAINED_ROWS = 65_536
DENSITY_EDGES = [-7.0 + 0.25 * i for i in range(29)]


class Moments:
    """Sum and squares about a shift near the mean, in fp64: exact mean and deviations, no cancellation."""

    def __init__(self, shift_D: Tensor, with_covariance: bool):
        D = len(shift_D)
        self.shift_D, self.rows = shift_D, 0
        self.sum_D = shift_D.new_zeros(D, dtype=torch.float64)
        self.square_D = torch.zeros_like(self.sum_D)
        self.product_DD = shift_D.new_zeros(D, D, dtype=torch.float64) if with_covariance else None

    def add(self, x_RD: Tensor) -> None:
        y_RD = x_RD - self.shift_D
        self.rows += len(y_RD)
        self.sum_D += y_RD.sum(0, dtype=torch.float64)
        self.square_D += y_RD.square().sum(0, dtype=torch.float64)
        if self.product_DD is not None:
            self.product_DD += y_RD.T @ y_RD

    def mean(self) -> Tensor:
        """[D], fp64."""
        return self.shift_D + self.sum_D / self.rows

    def deviations(self) -> Tensor:
        """Per dimension: sum of squared deviations from the mean, [D]."""
        return self.square_D - self.sum_D.square() / self.rows

    def pca_fvu(self, k: int) -> float:
        """FVU of these very rows, projected on their own k first principal components."""
        assert self.product_DD is not None
        scatter_DD = self.product_DD - torch.outer(self.sum_D, self.sum_D) / self.rows
        ascending_D = torch.linalg.eigvalsh(scatter_DD).clamp(min=0)
        return float(ascending_D[: max(len(ascending_D) - k, 0)].sum() / ascending_D.sum())


class Reconstruction:
    """Errors and codes of one dictionary over the rows it has seen."""

    def __init__(self, sae: ExportedSae, encode: Encode):
        self.sae, self.encode, self.rows = sae, encode, 0
        self.error_D = torch.zeros_like(sae.b_dec_D, dtype=torch.float64)
        self.cosine = torch.zeros_like(self.error_D[0])
        self.fired_F = torch.zeros_like(sae.b_enc_F, dtype=torch.int64)

    def add(self, x_RD: Tensor) -> None:
        val_RK, idx_RK = self.sae.encode(x_RD, self.encode)
        x_hat_RD = self.sae.decode(val_RK, idx_RK)
        self.rows += len(x_RD)
        self.error_D += (x_RD - x_hat_RD).square().sum(0, dtype=torch.float64)
        self.cosine += cosine_similarity(x_RD, x_hat_RD, dim=1).sum(dtype=torch.float64)
        self.fired_F += torch.bincount(idx_RK[val_RK > 0], minlength=self.sae.num_latents)


def evaluate(
    cfg: RunConfig, sae: ExportedSae, rows: Iterator[Tensor], *, encode: Encode
) -> tuple[dict[str, Any], Tensor]:
    """FVU, L0, dead latents and baselines over `cfg.eval.tokens` rows (or all there are).

    fvu                 sum of squared errors / sum of squared deviations from these rows' mean
    explained_variance  1 - the same ratio per dimension, mean over dimensions that vary
    cosine              mean cosine of x and its reconstruction
    l0                  mean number of codes above zero
    dead_fraction       latents silent on every row; None, with `dead_reason`, below 500k rows
    density             latents by log10 of how often they fire; `silent`: never
    fvu_pca             PCA with k components, fitted on these very rows: a baseline with an advantage
    fvu_untrained       random unit decoder rows and their transpose as encoder, as before training, on the
                        first 64k rows

    Args:
        rows: batches [R, D] of held-out activations, raw, on any device.

    Returns:
        The numbers, and the mean of the rows [D].

    Raises:
        DataError: there is not one row, or the rows are not finite or all equal.
    """
    wanted = parse_count(cfg.eval.tokens, "eval.tokens")
    first_RD = next(rows, None)
    if first_RD is None or len(first_RD) == 0:
        raise DataError("evaluation: no held-out activations; give more text or rows, or set eval.tokens=0")
    like = sae.W_enc_FD
    shift_D = first_RD.to(like).mean(0)
    moments = Moments(shift_D, with_covariance=cfg.eval.baselines)
    trained = Reconstruction(sae, encode)
    early = Moments(shift_D, with_covariance=False)
    untrained = Reconstruction(untrained_sae(cfg, sae, shift_D), encode) if cfg.eval.baselines else None
    for batch_RD in itertools.chain([first_RD], rows):
        x_RD = batch_RD.to(like)[: wanted - moments.rows]
        moments.add(x_RD)
        trained.add(x_RD)
        if untrained is not None and untrained.rows < UNTRAINED_ROWS:
            early.add(x_RD)
            untrained.add(x_RD)
        if moments.rows >= wanted:
            break
    deviations_D = moments.deviations()
    if not 0 < float(deviations_D.sum()) < float("inf"):
        raise DataError("evaluation: the held-out activations are all equal or not finite; look at the hook")
    varies_D = deviations_D > 0
    result: dict[str, Any] = {
        "eval_tokens": moments.rows,
        "fvu": float(trained.error_D.sum() / deviations_D.sum()),
        "explained_variance": float((1 - trained.error_D / deviations_D)[varies_D].mean()),
        "cosine": float(trained.cosine / moments.rows),
        "l0": float(trained.fired_F.sum() / moments.rows),
        "fvu_pca": None,
        "fvu_untrained": None,
    }
    if untrained is not None:
        result["fvu_pca"] = moments.pca_fvu(sae.k)
        result["fvu_untrained"] = float(untrained.error_D.sum() / early.deviations().sum())
    return result | _firing(trained.fired_F, moments.rows), moments.mean().to(like)


def untrained_sae(cfg: RunConfig, sae: ExportedSae, mean_D: Tensor) -> ExportedSae:
    """A dictionary of the same size as training would start it: random unit decoder rows."""
    draw = torch.Generator().manual_seed(cfg.seed)
    W_dec_FD = normalize(torch.randn(sae.W_dec_FD.shape, generator=draw), dim=1).to(sae.W_dec_FD)
    return ExportedSae(
        W_enc_FD=cfg.sae.encoder_scale * W_dec_FD,
        b_enc_F=torch.zeros_like(sae.b_enc_F),
        W_dec_FD=W_dec_FD,
        b_dec_D=mean_D,
        k=sae.k,
    )


def _firing(fired_F: Tensor, rows: int) -> dict[str, Any]:
    silent = int((fired_F == 0).sum())
    log_density = (fired_F[fired_F > 0].double() / rows).log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1])
    histogram = torch.histc(log_density.cpu(), len(DENSITY_EDGES) - 1, DENSITY_EDGES[0], DENSITY_EDGES[-1])
    result: dict[str, Any] = {
        "dead_fraction": silent / len(fired_F) if rows >= DEAD_TOKENS else None,
        "dead_tokens": rows,
        "density": {"log10_edges": DENSITY_EDGES, "latents": histogram.long().tolist(), "silent": silent},
    }
    if rows < DEAD_TOKENS:
        result["dead_reason"] = f"{rows} held-out tokens; dead means silent on at least {DEAD_TOKENS}"
    return result
