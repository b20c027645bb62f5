"""The gradients and Adam's update of the rows that a step touched, in torch operations, by tiles of latents.

`optim.row_adam` uses the class of a backend that is made of a step's pairs and the state of the rows, and has
`squares` and `move`.

Letters: as core.types; F latents that this rank owns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae_dist.kernels.torch_backend import order_by

TILE = 4096
"""Touched latents per tile. With clipping, gradients are computed twice: once for their norm."""


@dataclass
class PairTerm:
    """A term of a weight's gradient: sum of coeff[p] * rows[row[p]] over the pairs p of a latent."""

    latent_P: Tensor
    coeff_P: Tensor
    row_P: Tensor
    rows_BD: Tensor


@dataclass
class RowState:
    """The owned rows of W_enc, b_enc and W_dec by name, and their moments (`moment1` empty: no momentum).

    touched_F  number of the update that touched a latent last
    unit_rows  names of the weights whose rows keep unit norm
    """

    weights: dict[str, Tensor]
    moment1: dict[str, Tensor]
    moment2: dict[str, Tensor]
    touched_F: Tensor
    unit_rows: tuple[str, ...]


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one update: learning rates by weight; `number` counts from 1."""

    lr: dict[str, float]
    beta1: float
    beta2: float
    eps: float
    number: int

    @property
    def corrections(self) -> tuple[float, float]:
        """The corrections of both moments for their start at zero."""
        return 1 - self.beta1**self.number, 1 - self.beta2**self.number


class RowUpdate(Protocol):
    """A step's gradients, as pairs, and their update of the rows they touch."""

    def __init__(self, encoder: list[PairTerm], decoder: list[PairTerm], state: RowState): ...

    def squares(self) -> Tensor:
        """Return the squared norm of all gradients, radial parts removed."""
        ...

    def move(self, step: AdamStep, bad: Tensor, scale: Tensor | None) -> Tensor:
        """Update every touched row by gradients times `scale`, unless `bad` is 1; return the `squares`."""
        ...


class TiledUpdate:
    """The row update in torch operations; see `RowUpdate`."""

    def __init__(self, encoder: list[PairTerm], decoder: list[PairTerm], state: RowState):
        F = len(state.touched_F)
        self.encoder, self.decoder = _sorted(encoder, F), _sorted(decoder, F)
        self.state = state

    def squares(self) -> Tensor:
        """Return the squared norm of all gradients; see `RowUpdate.squares`."""
        found = [g.square().sum() for tile in self._tiles() for g in self._gradients(tile).values()]
        return torch.stack(found).sum() if found else self.state.weights["W_enc"].new_zeros(())

    def move(self, step: AdamStep, bad: Tensor, scale: Tensor | None) -> Tensor:
        """Update every touched row; see `RowUpdate.move`."""
        squares = torch.zeros_like(bad)
        for tile in self._tiles():
            squares = squares + self._move(tile, step, bad, scale)
        return squares

    def _tiles(self) -> Sequence[Tensor]:
        """Return every touched latent once, ascending, by tiles."""
        touched = torch.cat([term.latent_P for term in [*self.encoder, *self.decoder]]).unique()
        return [latent_U for latent_U in touched.split(TILE) if len(latent_U)]

    def _gradients(self, latent_U: Tensor) -> dict[str, Tensor]:
        """Return the gradients of the tile's latents, radial parts removed."""
        found = [gradient(term, latent_U) for term in self.encoder]
        W_dec = sum_all([gradient(term, latent_U)[0] for term in self.decoder])
        if "W_dec" in self.state.unit_rows:
            remove_radial(W_dec, self.state.weights["W_dec"][latent_U])
        return {
            "W_enc": sum_all([w for w, _ in found]),
            "b_enc": sum_all([b for _, b in found]),
            "W_dec": W_dec,
        }

    def _move(self, latent_U: Tensor, step: AdamStep, bad: Tensor, scale: Tensor | None) -> Tensor:
        state, (correction1, correction2) = self.state, step.corrections
        since_U = (step.number - state.touched_F[latent_U]).double()
        squares = torch.zeros_like(bad)
        for name, grad in self._gradients(latent_U).items():
            squares = squares + grad.square().sum()
            grad = grad * scale if scale is not None else grad
            column = (-1,) + (1,) * (grad.ndim - 1)
            weight, moment2 = state.weights[name], state.moment2[name]
            second = moment2[latent_U] * (step.beta2**since_U).to(grad).view(column)
            second = second + (1 - step.beta2) * grad.square()
            momentum = grad
            if state.moment1:
                moment1 = state.moment1[name]
                momentum = moment1[latent_U] * (step.beta1**since_U).to(grad).view(column)
                momentum = momentum + (1 - step.beta1) * grad
                moment1[latent_U] = torch.where(bad > 0, moment1[latent_U], momentum)
            moved = momentum / correction1 / ((second / correction2).sqrt() + step.eps)
            row = weight[latent_U] - step.lr[name] * moved
            if name in state.unit_rows:
                normalise(row)
            weight[latent_U] = torch.where(bad > 0, weight[latent_U], row)
            moment2[latent_U] = torch.where(bad > 0, moment2[latent_U], second)
        state.touched_F[latent_U] = torch.where(bad > 0, state.touched_F[latent_U], step.number)
        return squares


def gradient(term: PairTerm, latent_U: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each latent the sums over its pairs of coefficient * row [U, D], and of coefficients [U].

    Args:
        term: its pairs are sorted by latent.
        latent_U: ascending, and all touched latents between the first and the last.
    """
    start_U = torch.searchsorted(term.latent_P, latent_U)
    stop_U = torch.searchsorted(term.latent_P, latent_U, right=True)
    low, high = int(start_U[0]), int(stop_U[-1])
    coeff_P, offset_U = term.coeff_P[low:high], start_U - low
    weights = torch.nn.functional.embedding_bag(
        term.row_P[low:high], term.rows_BD, offset_U, mode="sum", per_sample_weights=coeff_P
    )
    segments = torch.repeat_interleave(stop_U - start_U, output_size=high - low)
    bias = coeff_P.new_zeros(len(latent_U)).index_add_(0, segments, coeff_P)
    return weights, bias


def remove_radial(grad_FD: Tensor, row_FD: Tensor) -> None:
    """Remove, in place, the part of each row's gradient that only changes the row's length."""
    for grad_fD, row_fD in zip(tiles(grad_FD), tiles(row_FD), strict=True):
        grad_fD.addcmul_(row_fD, (grad_fD * row_fD).sum(1, keepdim=True), value=-1)


def normalise(row_FD: Tensor) -> None:
    """Scale each row to unit norm, in place."""
    for row_fD in tiles(row_FD):
        row_fD.div_(torch.linalg.vector_norm(row_fD, dim=1, keepdim=True))


def tiles(rows_FD: Tensor) -> tuple[Tensor, ...]:
    """Split rows into parts, so that intermediate results fit the cache and stay small."""
    elements = 2**26 if rows_FD.is_cuda else 2**18
    return rows_FD.split(max(elements // rows_FD.shape[1], 1))


def sum_all(values: list[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    return torch.stack(values).sum(0) if len(values) > 1 else values[0]


def _sorted(terms: list[PairTerm], F: int) -> list[PairTerm]:
    """Return the terms with their pairs sorted by latent, ascending."""
    found = []
    for term in terms:
        order_P = order_by(term.latent_P, F)
        found.append(
            PairTerm(term.latent_P[order_P], term.coeff_P[order_P], term.row_P[order_P], term.rows_BD)
        )
    return found
