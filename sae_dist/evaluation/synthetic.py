"""Evaluation against the true features of synthetic activations, which are known from the config."""

from pathlib import Path
from typing import Any

import torch

from sae_dist.config.counts import parse_count
from sae_dist.config.run import Resolved
from sae_dist.core.run_folder import PLOTS
from sae_dist.evaluation.plots import plot_recovery
from sae_dist.evaluation.quality.recovery import Firing, recover
from sae_dist.export.exported import Encode, ExportedSae
from sae_dist.kernels.reference import pair_rows
from sae_dist.transport.ground_truth import GroundTruth
from sae_dist.transport.synthetic import SyntheticChunkSource

FIRING_ROWS = 16_384


def held_out(cfg: Resolved) -> SyntheticChunkSource:
    """Open held-out rows, which training never draws."""
    return SyntheticChunkSource(
        GroundTruth.of(cfg.activations, cfg.seed),
        lanes=1,
        rows=cfg.shuffle.chunk_rows,
        seed=cfg.seed,
        held_out=True,
        dtype=torch.float32,
    )


def evaluate_recovery(cfg: Resolved, sae: ExportedSae, encode: Encode, folder: Path) -> dict[str, Any]:
    """Measure the scores of `recovery`, and `true_l0`, the mean number of features per row.

    Draws recovery.png. Firing is measured on 16k held-out rows, or on eval.tokens if those are fewer (0: not
    at all).
    """
    source = held_out(cfg)
    truth = source.truth
    W_dec_FD = sae.W_dec_FE.cpu()
    recovery = recover(truth.directions_GD, W_dec_FD)
    plot_recovery(recovery, truth.directions_GD, W_dec_FD, truth.names, folder / PLOTS / "recovery.png")
    result = recovery.numbers() | {"true_l0": truth.true_l0}
    rows = min(FIRING_ROWS, parse_count(cfg.eval.tokens, "eval.tokens"))
    if rows == 0:
        return result
    firing = Firing(recovery)
    for index, chunk in zip(range(-(-rows // source.rows)), source.open(0, None), strict=False):
        codes = sae.encode(chunk.rows_RD.to(sae.W_enc_FD), encode)
        fired_P = codes.value_P > 0
        row_P = pair_rows(codes.offsets_B, len(codes.latent_P))[fired_P]
        firing.add(source.fires(0, index), row_P.cpu(), codes.latent_P[fired_P].cpu())
    return result | firing.numbers()
