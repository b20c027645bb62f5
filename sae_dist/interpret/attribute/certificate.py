"""Proofs that gradients are right: the parts of the metric add up, and agree with finite differences.

Letters: as core.types; A nodes of a path, C codes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_dist.interpret.attribute.metrics import Question
from sae_dist.interpret.attribute.reading import BACKWARD_TOKENS, Reading, gradients, logits, lost

NODES, MOST_NODES = 20, 160
"""Gauss-Legendre nodes: as many at first, and doubled up to so many while the parts do not add up."""
CLOSE = 1e-3
"""A gap of this share of what the metric loses is none."""
CHECKED = 10
STEP = 0.01
"""Finite differences are of the greatest effects: each code moved both ways, by this share and twice that."""


@dataclass(frozen=True)
class Certificate:
    """The metric on the way from the text as it is to one without codes and error.

    Both fall together to 0 at all tokens that count. Gradients times what each part is, integrated along the
    way, are shares of what the metric loses, and add up to it.

    Attributes:
        clean, without: the metric at both ends.
        latents, error: the share of all codes together, and of what the dictionary does not explain.
        complete_to: the distance of their sum from what the metric loses.
        nodes: Gauss-Legendre nodes of the integral.
    """

    clean: float
    without: float
    latents: float
    error: float
    complete_to: float
    nodes: int

    @property
    def lost(self) -> float:
        """The loss of the metric without codes and error."""
        return self.clean - self.without

    @property
    def complete(self) -> bool:
        """The answer to: do the parts add up?"""
        return self.complete_to <= CLOSE * max(abs(self.lost), abs(self.latents), abs(self.error))

    @property
    def error_leads(self) -> bool:
        """The answer to: does the error carry more than the latents?"""
        return abs(self.error) > abs(self.latents)


def certificate(found: Reading, asked: Question) -> tuple[Certificate, Tensor, Tensor]:
    """Compute what codes and error carry of the metric, along the path on which they fall to 0 together.

    Returns:
        The certificate, and the share of each code [P] and of the error at each position [S], in float64.
    """
    whole_SE = found.whole_SE
    with torch.no_grad():
        clean, without = (asked(logits(found, each)).item() for each in (None, -whole_SE[None]))
    nodes = NODES
    while True:
        along_SE = _integral(found, asked, nodes)
        latents_P = found.dot(along_SE)
        error_S = (found.error_SE.double() * along_SE.double()).sum(1)
        latents, error = float(latents_P.sum()), float(error_S.sum())
        gap = abs(latents + error - (clean - without))
        made = Certificate(clean, without, latents, error, gap, nodes)
        if made.complete or nodes >= MOST_NODES:
            return made, latents_P, error_S
        nodes *= 2


def _integral(found: Reading, asked: Question, nodes: int) -> Tensor:
    """Return the mean of the gradient along the path [S, E]."""
    place_A, weight_A = (torch.from_numpy(each) / 2 for each in np.polynomial.legendre.leggauss(nodes))
    whole_SE = found.whole_SE
    place_A = (place_A + 0.5).to(whole_SE.device)
    total_SE = torch.zeros_like(whole_SE, dtype=torch.float64)
    step = max(1, BACKWARD_TOKENS // len(whole_SE))
    for first in range(0, nodes, step):
        own = slice(first, first + step)
        _, grad_ASE = gradients(found, asked, -place_A[own, None, None].to(whole_SE) * whole_SE)
        total_SE += torch.einsum("a,ase->se", weight_A[own].to(total_SE), grad_ASE.double())
    return total_SE


@dataclass(frozen=True)
class Differences:
    """The distance of gradients from central finite differences, relative to the latter.

    Of two steps, one twice the other, so that what is cubic in the step cancels.

    Attributes:
        codes: of how many codes, those of the greatest effects.
        median, worst: None: there is no code.
    """

    codes: int
    median: float | None
    worst: float | None


def differences(found: Reading, asked: Question, effect_P: Tensor, order_P: Tensor) -> Differences:
    """Compare the codes of the greatest effects with finite differences.

    Args:
        effect_P: gradient times code.
        order_P: codes, greatest effect first.
    """
    own_C = order_P[:CHECKED]
    if not len(own_C):
        return Differences(0, None, None)
    changes = [
        (found.position_P[place, None], share * STEP * row_E[None])
        for place, row_E in zip(own_C, found.directions(own_C), strict=True)
        for share in (-1, 1, -2, 2)
    ]
    less_C4 = lost(found, asked, changes).view(-1, 4)
    near_C, far_C = less_C4[:, 0] - less_C4[:, 1], (less_C4[:, 2] - less_C4[:, 3]) / 2
    slope_C = (4 * near_C - far_C) / (6 * STEP)
    off_C = (slope_C - effect_P[own_C]).abs() / slope_C.abs().clamp(min=torch.finfo(torch.float64).tiny)
    return Differences(len(own_C), float(off_C.median()), float(off_C.max()))
