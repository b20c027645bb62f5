"""Recovery: did a dictionary find the true features that its synthetic activations are made of?

Cosines are signed: codes are never negative, so a decoder row that points away from a feature has not found
it (a feature and its opposite are two features).

Letters: as core.types; M matched pairs of a feature and a latent.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

MATCHED_ABOVE = 0.9


@dataclass(frozen=True)
class Recovery:
    """Cosines of true features and decoder rows, and the best one-to-one matching.

    Attributes:
        cosine_GF: of every true feature and every decoder row.
        feature_M, latent_M: the matched pairs, M = min(G, F) of them, ascending in the feature's number.
    """

    cosine_GF: Tensor
    feature_M: Tensor
    latent_M: Tensor

    @property
    def matched_G(self) -> Tensor:
        """The cosine of each true feature with its latent; 0 for a feature that got no latent."""
        matched_G = self.cosine_GF.new_zeros(len(self.cosine_GF))
        matched_G[self.feature_M] = self.cosine_GF[self.feature_M, self.latent_M]
        return matched_G

    def numbers(self) -> dict[str, Any]:
        """Return the scores for summary.json.

        mmcs            mean over true features of the cosine with the nearest decoder row
        mmcs_latents    mean over latents of the cosine of the decoder row with the nearest true feature
                        (mean max cosine similarity: Sharkey et al. 2022); low also if there are spare latents
        matching_score  mean over true features of the cosine with a decoder row of their own, under the
                        one-to-one matching with the highest sum
        matched_share   share of true features for which that cosine is above 0.9
        """
        return {
            "mmcs": float(self.cosine_GF.amax(1).mean()),
            "mmcs_latents": float(self.cosine_GF.amax(0).mean()),
            "matching_score": float(self.matched_G.mean()),
            "matched_share": float((self.matched_G > MATCHED_ABOVE).double().mean()),
        }


def recover(truth_GD: Tensor, W_dec_FD: Tensor) -> Recovery:
    """Match true features and decoder rows, rows of any length, by cosine (Hungarian algorithm).

    A row of zeros has cosine 0 with everything. Time grows with the cube of the larger of G and F: seconds
    for some thousands.
    """
    truth_GD = normalize(truth_GD.double().cpu(), dim=1)
    cosine_GF = truth_GD @ normalize(W_dec_FD.detach().double().cpu(), dim=1).T
    feature_M, latent_M = linear_sum_assignment(cosine_GF.numpy(), maximize=True)
    return Recovery(
        cosine_GF, torch.from_numpy(np.asarray(feature_M)), torch.from_numpy(np.asarray(latent_M))
    )


class Firing:
    """The agreement of matched latents with their features, over all (row, feature) pairs of the rows added.

    Latents that are matched to no feature are left out; features without a latent are never found.
    """

    def __init__(self, recovery: Recovery):
        self.feature_F = torch.full((recovery.cosine_GF.shape[1],), -1)
        self.feature_F[recovery.latent_M] = recovery.feature_M
        self.found = self.fired = self.true = 0

    def add(self, fires_RG: Tensor, row_P: Tensor, latent_P: Tensor) -> None:
        """Add rows: the features that fire, and the P pairs of a row and a latent with a code above zero."""
        feature_P = self.feature_F[latent_P]
        matched_P = feature_P >= 0
        self.found += int(fires_RG[row_P[matched_P], feature_P[matched_P]].sum())
        self.fired += int(matched_P.sum())
        self.true += int(fires_RG.sum())

    def numbers(self) -> dict[str, Any]:
        """Return precision, recall and their harmonic mean; 0 if nothing fires."""
        return {
            "firing_precision": self.found / max(self.fired, 1),
            "firing_recall": self.found / max(self.true, 1),
            "firing_f1": 2 * self.found / max(self.fired + self.true, 1),
        }
