"""The quality of a dictionary's reconstructions of held-out activations, in one streaming pass in raw space.

Letters: as core.types.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from sae_dist.config.kinds import ENCODER_SCALE
from sae_dist.config.run import Resolved
from sae_dist.core.errors import DataError
from sae_dist.core.reconstruction import Fidelity, firing_counts, firing_shares
from sae_dist.evaluation.quality.moments import LeastSquares, Moments
from sae_dist.evaluation.quality.per_token import PerToken
from sae_dist.export.exported import Encode, ExportedSae
from sae_dist.export.statistics import CodeStatistics, CodeSums

DEAD_TOKENS = 500_000
UNTRAINED_ROWS = 65_536
DENSITY_EDGES = [-7.0 + 0.25 * i for i in range(29)]


def evaluate(parts: Sequence["Evaluation"], batches: Iterator[Tensor], tokens: int) -> None:
    """Feed `tokens` rows of the batches, or all there are, to every part: one pass for all dictionaries."""
    seen = 0
    for batch in batches:
        rows = batch[: tokens - seen]
        seen += len(rows)
        for part in parts:
            if len(rows):
                part.add(rows)
        if seen >= tokens:
            break


class Evaluation:
    """The part of one dictionary in a pass over held-out rows.

    Errors are those of the input; for a transcoder, those of its target:

    fvu, explained_variance, l2_ratio, relative_bias: see `core.reconstruction.Fidelity`
    fvu_quantiles, fvu_without_high_norm: see `evaluation.quality.per_token`
    cosine              mean cosine of input or target and reconstruction
    l0                  mean number of codes above zero
    dead_fraction       latents silent on every row; None, with `dead_reason`, below 500k rows
    silent_fraction     the same, however many rows there are
    dense_fraction_1    latents that fire on more than 1 % of the rows; _10: on more than 10 %
    density             latents by log10 of how often they fire; `silent`: never
    fvu_pca             PCA with k components (kinds without k: L0, rounded), fitted on these very rows: a
                        baseline with an advantage; not for transcoders
    fvu_linear          for transcoders: the best affine map from input to target, fitted on these very rows
    fvu_untrained       random unit decoder rows and their transpose as encoder, as before training, on the
                        first 64k rows; for topk autoencoders
    """

    def __init__(self, cfg: Resolved, sae: ExportedSae, encode: Encode, *, twice: bool = True):
        """Begin the part.

        Args:
            twice: there is room for a second dictionary of this size, the untrained one.
        """
        self.cfg, self.sae, self.encode, self.twice = cfg, sae, encode, twice
        self.trained = Reconstruction(sae, encode, CodeSums(sae.num_latents, sae.W_enc_FD.device))
        self.moments: Moments | None = None

    def add(self, rows: Tensor) -> None:
        """Add held-out rows [R, D], for a transcoder [R, D + E] with the targets; raw, on any device."""
        sae = self.sae
        x_RD, y_RE = _split(sae, rows)
        if self.moments is None:
            baselines = self.cfg.eval.baselines and not sae.transcoder
            self.moments = Moments(y_RE.mean(0), with_covariance=baselines)
            self.fidelity = Fidelity(y_RE.mean(0))
            self.per_token = PerToken(x_RD, y_RE)
            self.baselines = Baselines(self.cfg, sae, self.encode, x_RD, y_RE, twice=self.twice)
        self.moments.add(y_RE)
        y_hat_RE = self.trained.add(x_RD, y_RE)
        self.fidelity.add(y_RE, y_hat_RE)
        self.per_token.add(x_RD, y_RE, y_hat_RE)
        self.baselines.add(x_RD, y_RE)

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of all rows so far.

        Raises:
            DataError: there were no rows, or they are not finite or all equal.
        """
        moments, trained = self.moments, self.trained
        if moments is None:
            raise DataError(
                "evaluation: no held-out activations; give more text or rows, or set eval.tokens=0"
            )
        deviations_E = moments.deviations()
        if not 0 < float(deviations_E.sum()) < float("inf"):
            raise DataError(
                "evaluation: the held-out activations are all equal or not finite; look at the hook"
            )
        result: dict[str, Any] = {"eval_tokens": moments.rows} | self.fidelity.numbers()
        result |= {"cosine": float(trained.cosine / moments.rows), "l0": trained.l0()}
        result |= self.per_token.numbers(float(deviations_E.sum()) / moments.rows)
        result |= self.baselines.results(moments, trained.l0())
        return result | _firing(trained.fired_F, moments.rows)

    def statistics(self) -> CodeStatistics:
        """Return how often each latent fires, and how strongly."""
        assert self.trained.sums is not None
        return self.trained.sums.statistics()

    def mean(self) -> Tensor:
        """Return the mean of the input, or of a transcoder's target [E]."""
        assert self.moments is not None
        return self.moments.mean().to(self.sae.W_dec_FE)


class Reconstruction:
    """The errors and codes of one dictionary, summed over rows."""

    def __init__(self, sae: ExportedSae, encode: Encode, sums: CodeSums | None = None):
        self.sae, self.encode, self.sums, self.rows = sae, encode, sums, 0
        self.error_E = torch.zeros_like(sae.b_dec_E, dtype=torch.float64)
        self.cosine = torch.zeros_like(self.error_E[0])
        self.fired_F = sae.W_enc_FD.new_zeros(sae.num_latents, dtype=torch.int64)

    def add(self, x_RD: Tensor, y_RE: Tensor) -> Tensor:
        """Add rows; return their reconstruction [R, E]."""
        codes = self.sae.encode(x_RD, self.encode)
        y_hat_RE = self.sae.decode(codes, x_RD)
        self.rows += len(x_RD)
        self.error_E += (y_RE - y_hat_RE).square().sum(0, dtype=torch.float64)
        self.cosine += cosine_similarity(y_RE, y_hat_RE, dim=1).sum(dtype=torch.float64)
        self.fired_F += torch.bincount(codes.latent_P, minlength=self.sae.num_latents)
        if self.sums is not None:
            self.sums.add(codes)
        return y_hat_RE

    def l0(self) -> float:
        """Return the mean number of codes per row."""
        return float(self.fired_F.sum() / self.rows)


class Baselines:
    """The baselines that a dictionary is compared with, and the reasons for those that make no sense."""

    def __init__(
        self,
        cfg: Resolved,
        sae: ExportedSae,
        encode: Encode,
        x_RD: Tensor,
        y_RE: Tensor,
        *,
        twice: bool = True,
    ):
        self.cfg, self.sae, self.twice = cfg, sae, twice
        wanted = cfg.eval.baselines
        self.linear = LeastSquares(x_RD.mean(0), y_RE.mean(0)) if wanted and sae.transcoder else None
        self.untrained: Reconstruction | None = None
        if wanted and sae.kind == "topk" and not sae.transcoder and twice:
            self.untrained = Reconstruction(untrained_sae(cfg, sae, x_RD.mean(0)), encode)
        self.early = Moments(y_RE.mean(0), with_covariance=False)

    def add(self, x_RD: Tensor, y_RE: Tensor) -> None:
        if self.linear is not None:
            self.linear.add(x_RD, y_RE)
        if self.untrained is not None and self.untrained.rows < UNTRAINED_ROWS:
            self.early.add(y_RE)
            self.untrained.add(x_RD, y_RE)

    def results(self, moments: Moments, l0: float) -> dict[str, Any]:
        """Return `fvu_pca`, `fvu_untrained` and, for transcoders, `fvu_linear`; reasons for missing ones."""
        sae = self.sae
        result: dict[str, Any] = {"fvu_pca": None, "fvu_untrained": None}
        if sae.transcoder:
            result["fvu_linear"] = None if self.linear is None else self.linear.fvu()
        if not self.cfg.eval.baselines:
            reason = "eval.baselines=false"
            return result | {"fvu_pca_reason": reason, "fvu_untrained_reason": reason}
        if sae.transcoder:
            result["fvu_pca_reason"] = "a transcoder does not see its target; compare fvu_linear"
        else:
            result["fvu_pca"] = moments.pca_fvu(sae.k if sae.k is not None else round(l0))
        if self.untrained is not None:
            error = self.untrained.error_E.sum()
            result["fvu_untrained"] = float(error / self.early.deviations().sum())
        elif sae.transcoder:
            result["fvu_untrained_reason"] = "random decoder rows know nothing of a transcoder's target"
        elif not self.twice:
            result["fvu_untrained_reason"] = "there is no room for a second dictionary of this size"
        else:
            result["fvu_untrained_reason"] = "only topk dictionaries keep their L0 before training"
        return result


def untrained_sae(cfg: Resolved, sae: ExportedSae, mean_D: Tensor) -> ExportedSae:
    """Make a TopK dictionary of the same size as before training: random unit decoder rows."""
    draw = torch.Generator().manual_seed(cfg.seed)
    W_dec_FD = normalize(torch.randn(sae.W_dec_FE.shape, generator=draw), dim=1).to(sae.W_dec_FE)
    return ExportedSae(
        kind="topk",
        W_enc_FD=ENCODER_SCALE * W_dec_FD,
        b_enc_F=W_dec_FD.new_zeros(len(W_dec_FD)),
        W_dec_FE=W_dec_FD,
        b_dec_E=mean_D,
        k=sae.k,
    )


def _split(sae: ExportedSae, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Split rows into input and target; for an autoencoder the two are the same."""
    rows = rows.to(sae.W_enc_FD)
    return (rows[:, : sae.width], rows[:, sae.width :]) if sae.transcoder else (rows, rows)


def _firing(fired_F: Tensor, rows: int) -> dict[str, Any]:
    silent = int((fired_F == 0).sum())
    log_density = (fired_F[fired_F > 0].double() / rows).log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1])
    histogram = torch.histc(log_density.cpu(), len(DENSITY_EDGES) - 1, DENSITY_EDGES[0], DENSITY_EDGES[-1])
    result: dict[str, Any] = {
        "dead_fraction": silent / len(fired_F) if rows >= DEAD_TOKENS else None,
        "dead_tokens": rows,
        **firing_shares(firing_counts(fired_F, rows), len(fired_F)),
        "density": {"log10_edges": DENSITY_EDGES, "latents": histogram.long().tolist(), "silent": silent},
    }
    if rows < DEAD_TOKENS:
        result["dead_reason"] = f"{rows:,} held-out tokens; {DEAD_TOKENS:,} are needed"
    return result
