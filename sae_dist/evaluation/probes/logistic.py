"""Logistic regression, and measures of its predictions.

Letters: as core.types; N rows, D inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

STRENGTHS = (1e-5, 1e-3, 1e-1)
"""Strengths of the L2 penalty: factors of the sum of squared weights of standardised inputs."""
VALIDATION_ONE_IN = 5
STEPS = 100


@dataclass(frozen=True)
class Probe:
    """A linear classifier: score = x weight + bias; above 0 means yes."""

    weight_D: Tensor
    bias: Tensor

    def score(self, x_ND: Tensor) -> Tensor:
        """Return the score of each row, [N]."""
        return x_ND.to(self.weight_D) @ self.weight_D + self.bias


def fit(x_ND: Tensor, label_N: Tensor, strength: float) -> Probe:
    """Minimise the regularised log loss by L-BFGS, in fp64 on standardised inputs, classes balanced."""
    x_ND, y_N = x_ND.double(), label_N.double()
    mean_D, std_D = x_ND.mean(0), x_ND.std(0, correction=0)
    # An input that never varies gets no weight.
    std_D = torch.where(std_D > 1e-12, std_D, torch.inf)
    z_ND = (x_ND - mean_D) / std_D
    weight_D = torch.zeros(x_ND.shape[1], dtype=torch.float64, device=x_ND.device, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, device=x_ND.device, requires_grad=True)
    share = y_N.mean().clamp(1e-6, 1 - 1e-6)
    balance_N = torch.where(label_N, 0.5 / share, 0.5 / (1 - share))
    search = torch.optim.LBFGS(
        [weight_D, bias], max_iter=STEPS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = binary_cross_entropy_with_logits(z_ND @ weight_D + bias, y_N, balance_N)
        loss = loss + strength * weight_D.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    weight_D, bias = weight_D.detach() / std_D, bias.detach()
    return Probe(weight_D, bias - mean_D @ weight_D)


def fit_best(x_ND: Tensor, label_N: Tensor) -> Probe:
    """Fit with the strength that has the best AUC on a fifth of the rows set aside; then fit on all rows."""
    aside_N = torch.arange(len(x_ND), device=x_ND.device) % VALIDATION_ONE_IN == VALIDATION_ONE_IN - 1
    both = label_N[aside_N].any() and not label_N[aside_N].all()
    if not both or label_N[~aside_N].all() or not label_N[~aside_N].any():
        return fit(x_ND, label_N, STRENGTHS[1])
    found = []
    for strength in STRENGTHS:
        probe = fit(x_ND[~aside_N], label_N[~aside_N], strength)
        found.append(auc(probe.score(x_ND[aside_N]), label_N[aside_N]))
    return fit(x_ND, label_N, STRENGTHS[max(range(len(found)), key=lambda i: found[i])])


def auc(score_N: Tensor, label_N: Tensor) -> float:
    """Return the area under the ROC curve: how often a yes scores above a no, with ties counted half."""
    _, inverse_N, counts = score_N.double().unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    rank_N = (ends - (counts - 1) / 2)[inverse_N]
    yes = int(label_N.sum())
    no = len(label_N) - yes
    return float((rank_N[label_N].sum() - yes * (yes + 1) / 2) / (yes * no))


def accuracy(score_N: Tensor, label_N: Tensor) -> float:
    """Return the share of rows whose score has the right sign."""
    return float(((score_N > 0) == label_N).double().mean())


def f1(score_N: Tensor, label_N: Tensor) -> float:
    """Return the harmonic mean of precision and recall; 0 if nothing is found."""
    said_N = score_N > 0
    both = int((said_N & label_N).sum())
    return 2 * both / max(int(said_N.sum()) + int(label_N.sum()), 1)
