"""Comparison of dictionaries that differ in their seed alone: which latents do both find?

Two latents are partners if each is the other's nearest by cosine of decoder rows. Paulo and Belrose, "Sparse
autoencoders trained on the same data learn different features" (2025), count pairs of an optimal assignment
with cosine above 0.7; mutual nearest neighbours are a stricter one-to-one rule that needs no F x F matrix.
Treat a latent that other seeds do not find as an artefact of training, not a feature of the model.

Letters: as core.types; G latents of the other dictionary, t some of them.
"""

import csv
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_dist.config.run import Resolved, flat
from sae_dist.core.run_folder import EXPORT
from sae_dist.export.saelens import load_exported, load_firing_rates

MATCHED_ABOVE = 0.7
TILE = 4096
QUARTERS = 4


def compare_seeds(configs: list[Resolved], folder: Path) -> list[dict[str, Any]]:
    """Compare every two dictionaries of a grid that differ in `sae.seed` alone.

    Writes `seeds/<first> and <second>.csv` into the grid's folder: for each latent of the first its firing
    rate, its nearest latent of the second, their cosine, and whether they are partners.

    Returns:
        For each pair: names, the share `matched` of the first's latents that fire and have a partner with
        cosine above 0.7, the same in `quarters` of these latents by firing rate (rarest first; empty without
        evaluation), and the file.
    """
    found = []
    for one, other in itertools.combinations(configs, 2):
        apart = {key for key, value in flat(one).items() if value != flat(other)[key]}
        if apart <= {"sae.seed", "name"}:
            found.append(_compare(folder / (one.name or ""), folder / (other.name or ""), folder / "seeds"))
    return found


def _compare(one: Path, other: Path, folder: Path) -> dict[str, Any]:
    first, second = load_exported(one / EXPORT), load_exported(other / EXPORT)
    nearest_F, cosine_F, mutual_F = partners(first.W_dec_FE, second.W_dec_FE)
    rate_F = load_firing_rates(one / EXPORT)
    if rate_F is None:  # eval.tokens=0: rates are unknown, and every latent counts
        rate_F = torch.full_like(cosine_F, torch.nan)
    folder.mkdir(exist_ok=True)
    path = folder / f"{one.name} and {other.name}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["latent", "firing_rate", "nearest", "cosine", "partners"])
        columns = (rate_F.tolist(), nearest_F.tolist(), cosine_F.tolist(), mutual_F.tolist())
        rows.writerows(
            [latent, f"{rate:.3e}", nearest, f"{cosine:.4f}", int(mutual)]
            for latent, (rate, nearest, cosine, mutual) in enumerate(zip(*columns, strict=True))
        )
    fires_F = rate_F != 0
    matched_F = mutual_F & (cosine_F > MATCHED_ABOVE)
    known = bool(fires_F.any()) and not bool(rate_F.isnan().any())
    by_rate = matched_F[fires_F][rate_F[fires_F].argsort()].double()
    return {
        "first": one.name,
        "second": other.name,
        "above": MATCHED_ABOVE,
        "matched": float(by_rate.mean()) if len(by_rate) else 0.0,
        "quarters": [float(part.mean()) for part in by_rate.chunk(QUARTERS)] if known else [],
        "file": str(path.relative_to(folder.parent)),
    }


def partners(W_FE: Tensor, V_GE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find for each row of W its nearest row of V by cosine, the cosine, and whether the two are partners.

    Takes time F G E, and memory F times a tile.
    """
    W_FE, V_GE = normalize(W_FE.float(), dim=1), normalize(V_GE.float(), dim=1)
    cosine_F = W_FE.new_full((len(W_FE),), -2.0)
    nearest_F = torch.zeros(len(W_FE), dtype=torch.int64, device=W_FE.device)
    back = []
    for start in range(0, len(V_GE), TILE):
        cosine_Ft = W_FE @ V_GE[start : start + TILE].T
        best_F, place_F = cosine_Ft.max(1)
        better_F = best_F > cosine_F
        cosine_F = torch.where(better_F, best_F, cosine_F)
        nearest_F = torch.where(better_F, place_F + start, nearest_F)
        back.append(cosine_Ft.argmax(0))
    back_G = torch.cat(back)
    mutual_F = back_G[nearest_F] == torch.arange(len(W_FE), device=W_FE.device)
    return nearest_F, cosine_F, mutual_F
