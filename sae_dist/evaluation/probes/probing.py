"""k-sparse probing: can a few latents tell the class of a text or token?

As sae-probes does (Kantamneni et al. 2025, "Are Sparse Autoencoders Useful?", arXiv 2502.16681): latents are
ordered by the difference of their means over the two classes of the training part, each divided by the
latent's mean where it fires; the first k go into a logistic regression. The same regression on the raw
activation is the baseline. Different here: an L2 penalty of one of three strengths, and both classes weighing
alike.

Letters: as core.types; N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_dist.evaluation.probes.logistic import accuracy, auc, fit_best
from sae_dist.export.exported import Encode, ExportedSae
from sae_dist.kernels.reference import pair_rows

KS = (1, 5, 16)
ENCODED_ROWS = 2048
LEAST = 10
"""The fewest rows of each class that each part must have."""


@dataclass(frozen=True)
class Task:
    """A question with yes and no: rows of the activations, labels, and which are the training part."""

    name: str
    row_N: Tensor
    label_N: Tensor
    train_N: Tensor

    def too_small(self) -> bool:
        """Return whether a part has too few rows of a class."""
        parts = [self.label_N[self.train_N], self.label_N[~self.train_N]]
        return any(min(int(part.sum()), int((~part).sum())) < LEAST for part in parts)


@dataclass(frozen=True)
class RowCodes:
    """Codes of rows, as pairs of row and latent sorted by row."""

    row_P: Tensor
    latent_P: Tensor
    value_P: Tensor
    rows: int
    latents: int

    def sums(self, wanted_N: Tensor) -> tuple[Tensor, Tensor]:
        """Sum each latent's codes over given rows, and count the rows where it fires: [F] each."""
        weight_N = torch.bincount(wanted_N, minlength=self.rows)
        weight_P = weight_N[self.row_P]
        sums = torch.zeros(self.latents, dtype=torch.float64, device=self.row_P.device)
        counts = torch.zeros_like(sums)
        sums.index_add_(0, self.latent_P, weight_P * self.value_P.double())
        counts.index_add_(0, self.latent_P, weight_P.double())
        return sums, counts

    def columns(self, latents: Tensor, wanted_N: Tensor) -> Tensor:
        """Return the codes of a few latents, dense, [N, few]."""
        place_F = torch.full((self.latents,), -1, dtype=torch.int64, device=self.row_P.device)
        place_F[latents] = torch.arange(len(latents), device=self.row_P.device)
        kept_P = place_F[self.latent_P] >= 0
        dense = torch.zeros(self.rows, len(latents), dtype=torch.float64, device=self.row_P.device)
        dense[self.row_P[kept_P], place_F[self.latent_P[kept_P]]] = self.value_P[kept_P].double()
        return dense[wanted_N]


def encode_rows(sae: ExportedSae, encode: Encode, x_ND: Tensor) -> RowCodes:
    """Encode all rows; return their codes above zero."""
    rows, latents, values = [], [], []
    for first in range(0, len(x_ND), ENCODED_ROWS):
        codes = sae.encode(x_ND[first : first + ENCODED_ROWS].to(sae.W_enc_FD), encode)
        fired_P = codes.value_P > 0
        row_P = pair_rows(codes.offsets_B, len(codes.latent_P)) + first
        rows.append(row_P[fired_P])
        latents.append(codes.latent_P[fired_P])
        values.append(codes.value_P[fired_P])
    parts = [torch.cat(each).cpu() for each in (rows, latents, values)]
    return RowCodes(parts[0], parts[1], parts[2], len(x_ND), sae.num_latents)


def by_difference(codes: RowCodes, yes_N: Tensor, no_N: Tensor, signed: bool = False) -> Tensor:
    """Order latents by the difference of their normalised means over two classes, largest first, [F].

    `signed`: those that fire for yes first, those that fire for no last.
    """
    yes, yes_fired = codes.sums(yes_N)
    no, no_fired = codes.sums(no_N)
    mean_fired = (yes + no) / (yes_fired + no_fired).clamp(min=1)
    apart = (yes / len(yes_N) - no / len(no_N)) / mean_fired.clamp(min=1e-12)
    return (apart if signed else apart.abs()).argsort(descending=True, stable=True)


def probe_tasks(
    sae: ExportedSae, encode: Encode, x_ND: Tensor, tasks: Sequence[Task], ks: Sequence[int] = KS
) -> dict[str, Any]:
    """Compute `probes` of eval.json.

    tasks  by name: rows of both parts, share of the larger class in the test part (`majority`), and AUC and
           accuracy on the test part of the probe on the raw activation (`raw`) and on k latents (`k=1`, ...);
           `latents`: the first of them. None with a reason if a class has fewer than 10 rows in a part
    mean   over tasks, of each AUC
    """
    x_ND = x_ND[:, : sae.width]
    codes = encode_rows(sae, encode, x_ND)
    found: dict[str, Any] = {}
    for task in tasks:
        if task.too_small():
            found[task.name] = {"reason": f"fewer than {LEAST} rows of a class in a part"}
            continue
        found[task.name] = _one(codes, x_ND.cpu(), task, ks)
    scored = [each for each in found.values() if "raw" in each]
    arms = ["raw", *(f"k={k}" for k in ks if k <= sae.num_latents)]
    mean = {arm: sum(each[arm]["auc"] for each in scored) / len(scored) for arm in arms} if scored else None
    return {"tasks": found, "mean": mean}


def _one(codes: RowCodes, x_ND: Tensor, task: Task, ks: Sequence[int]) -> dict[str, Any]:
    train_N, test_N = task.row_N[task.train_N], task.row_N[~task.train_N]
    label_train, label_test = task.label_N[task.train_N], task.label_N[~task.train_N]
    yes = float(label_test.double().mean())
    result: dict[str, Any] = {"train": len(train_N), "test": len(test_N), "majority": max(yes, 1 - yes)}

    def judge(train: Tensor, test: Tensor) -> dict[str, float]:
        score_N = fit_best(train, label_train).score(test)
        return {"auc": auc(score_N, label_test), "accuracy": accuracy(score_N, label_test)}

    result["raw"] = judge(x_ND[train_N], x_ND[test_N])
    order_F = by_difference(codes, train_N[label_train], train_N[~label_train])
    result["latents"] = order_F[: max(ks)].tolist()
    for k in ks:
        if k <= codes.latents:
            result[f"k={k}"] = judge(codes.columns(order_F[:k], train_N), codes.columns(order_F[:k], test_N))
    return result
