"""Row-lazy Adam: an update visits only the rows that this step touched, and no dense gradient is ever made.

Gradients of the big weights arrive as sums over (row, latent) pairs (`RowTerm`). Pairs are sorted by latent
once; a tile of touched latents at a time gets its gradient, its moments and its new rows. Moments of a row
decay by beta ** (steps since it was last touched) when it is touched next.

With beta1 = 0 this is exactly dense Adam(0, beta2): an untouched row has no gradient, so dense Adam would not
move it either. With beta1 > 0 it is not dense Adam: momentum does not move a row between touches.
The moments of a latent live on the replica that owns it; that replica gets the pairs of all replicas.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.core.config import OptimConfig
from sae_dist.core.types import RowTerm
from sae_dist.dist.collectives import Axis
from sae_dist.dist.mesh import Topology
from sae_dist.optim.engine import FusedAdam, State, Trainable, lr_factor, normalise, remove_radial

TILE = 4096
"""Touched latents per tile; with `optim.clip` their gradients are made twice, once for the norm."""


class RowAdam:
    """Adam over rows for W_enc, b_enc and W_dec; torch's Adam for the few replicated parameters."""

    def __init__(self, cfg: OptimConfig, model: Trainable, topology: Topology):
        self.cfg, self.model, self.topology = cfg, model, topology
        model.row_terms = {"W_enc": [], "W_dec": []}
        self.weights = {name: getattr(model, name) for name in ("W_enc", "b_enc", "W_dec")}
        others = [n for n, kind in model.placements().items() if kind == "replicated"]
        self.replicated: dict[str, Parameter] = {name: getattr(model, name) for name in others}
        self.factors = {name: lr_factor(cfg, model, name) for name in (*self.weights, *others)}
        self.adam = FusedAdam(cfg, list(self.replicated.values()), [self.factors[n] for n in others])
        self.rows = len(self.weights["W_enc"]) // topology.dp.size
        self.first = topology.dp.rank * self.rows
        like = {name: weight.data[: self.rows] for name, weight in self.weights.items()}
        self.moment1 = {n: torch.zeros_like(w) for n, w in like.items()} if cfg.beta1 else {}
        self.moment2 = {n: torch.zeros_like(w) for n, w in like.items()}
        self.touched_F = torch.zeros(self.rows, dtype=torch.int64, device=like["W_enc"].device)

    def step(self, total: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """See `Engine.step`."""
        total.backward()
        with torch.no_grad():
            return self._apply(lr)

    def _apply(self, lr: float) -> tuple[Tensor, Tensor]:
        for parameter in self.replicated.values():
            self.topology.consumers.sum(_grad(parameter))
        pairs, self.model.row_terms = self._collect(), {"W_enc": [], "W_dec": []}
        small = torch.stack([_grad(p).square().sum() for p in self.replicated.values()]).sum()
        bad = self.topology.consumers.max((~(pairs.finite() & torch.isfinite(small))).to(small.dtype))
        scale = None
        if self.cfg.clip is not None:
            squares = sum((self._squares(tile) for tile in pairs.tiles()), small * 0)
            norm = (self.topology.consumers.sum(squares) + small).sqrt()
            scale = self.cfg.clip / norm.clamp(min=self.cfg.clip)
            for parameter in self.replicated.values():
                _grad(parameter).mul_(scale)
        squares = small * 0
        for tile in pairs.tiles():
            squares = squares + self._update(tile, lr, bad, scale)
        if scale is None:
            norm = (self.topology.consumers.sum(squares) + small).sqrt()
        self.adam.update(lr, bad.float())
        for parameter in self.replicated.values():
            parameter.grad = None
        self._share()
        return norm, bad.float()

    def state(self) -> State:
        """Moments and last touches by parameter, for checkpoints."""
        layout = "owned" if self.topology.dp.size > 1 else "sharded"
        found = {f"row_adam.{name}.exp_avg": (m, layout) for name, m in self.moment1.items()}
        found |= {f"row_adam.{name}.exp_avg_sq": (m, layout) for name, m in self.moment2.items()}
        found["row_adam.touched"] = (self.touched_F, layout)
        for name, parameter in self.replicated.items():
            for key, tensor in self.adam.moments(parameter).items():
                found[f"adam.{name}.{key}"] = (tensor, "replicated")
        return found

    @property
    def updates(self) -> int:
        """Updates made so far; a step whose gradients were not finite is none."""
        return self.adam.step_count

    @updates.setter
    def updates(self, value: int) -> None:
        self.adam.step_count = value

    def _collect(self) -> "_Pairs":
        """This step's pairs of all replicas whose latents this replica owns, sorted by latent."""
        terms = self.model.row_terms
        assert terms is not None
        last = self.first + self.rows
        sorted_terms = {
            name: [_SortedTerm.of(term, self.topology.dp, self.first, last) for term in terms[name]]
            for name in terms
        }
        return _Pairs(sorted_terms["W_enc"], sorted_terms["W_dec"])

    def _gradients(self, tile: "_Tile") -> dict[str, Tensor]:
        """Gradients of the tile's latents, radial parts removed."""
        W_enc, b_enc = tile.encoder()
        W_dec = tile.decoder()
        if "W_dec" in self.model.unit_rows:
            remove_radial(W_dec, self.weights["W_dec"].data[tile.latent_U + self.first])
        return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec}

    def _squares(self, tile: "_Tile") -> Tensor:
        return torch.stack([g.square().sum() for g in self._gradients(tile).values()]).sum()

    def _update(self, tile: "_Tile", lr: float, bad: Tensor, scale: Tensor | None) -> Tensor:
        """Move the tile's rows, unless `bad` is 1; returns the squared norm of its gradients."""
        beta1, beta2, latent_U = self.cfg.beta1, self.cfg.beta2, tile.latent_U
        update = self.updates + 1
        correction1, correction2 = 1 - beta1**update, 1 - beta2**update
        since_U = (update - self.touched_F[latent_U]).double()
        squares = torch.zeros_like(bad)
        for name, grad in self._gradients(tile).items():
            squares = squares + grad.square().sum()
            grad = grad * scale if scale is not None else grad
            column = (-1,) + (1,) * (grad.ndim - 1)
            weight, place_U = self.weights[name].data, latent_U + self.first
            second = self.moment2[name][latent_U] * (beta2**since_U).to(grad).view(column)
            second = second + (1 - beta2) * grad.square()
            momentum = grad
            if beta1:
                momentum = self.moment1[name][latent_U] * (beta1**since_U).to(grad).view(column)
                momentum = momentum + (1 - beta1) * grad
                self.moment1[name][latent_U] = torch.where(bad > 0, self.moment1[name][latent_U], momentum)
            moved = momentum / correction1 / ((second / correction2).sqrt() + self.cfg.eps)
            row = weight[place_U] - lr * self.factors[name] * moved
            if name in self.model.unit_rows:
                normalise(row)
            weight[place_U] = torch.where(bad > 0, weight[place_U], row)
            self.moment2[name][latent_U] = torch.where(bad > 0, self.moment2[name][latent_U], second)
        self.touched_F[latent_U] = torch.where(bad > 0, self.touched_F[latent_U], update)
        return squares

    def _share(self) -> None:
        """Every replica gets the rows that the others own."""
        if self.topology.dp.size > 1:
            for weight in self.weights.values():
                own = weight.data[self.first : self.first + self.rows]
                weight.data.copy_(self.topology.dp.gather_rows(own))


@dataclass
class _SortedTerm:
    """The pairs of one gradient term sorted by latent: latent_P ascending, row_P into rows_BD."""

    latent_P: Tensor
    coeff_P: Tensor
    row_P: Tensor
    rows_BD: Tensor

    @staticmethod
    def of(term: RowTerm, dp: Axis, first: int, last: int) -> "_SortedTerm":
        """Gathered over replicas, owned latents only, numbered from `first`."""
        counts = torch.diff(term.offsets_B, append=term.offsets_B.new_tensor([len(term.latent_P)]))
        row_P = torch.repeat_interleave(counts, output_size=len(term.latent_P)) + dp.rank * len(counts)
        latent_P, coeff_P, row_P = (dp.gather_ragged(t) for t in (term.latent_P, term.coeff_P, row_P))
        rows_BD = dp.gather_rows(term.rows_BD)
        if dp.size > 1:
            own_P = (latent_P >= first) & (latent_P < last)
            latent_P, coeff_P, row_P = latent_P[own_P] - first, coeff_P[own_P], row_P[own_P]
        latent_P, order_P = latent_P.sort(stable=True)
        return _SortedTerm(latent_P, coeff_P[order_P], row_P[order_P], rows_BD)

    def gradient(self, latent_U: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the pairs of each of some latents, ascending and complete between its first and last:
        of coefficient * row [U, D], and of the coefficients [U]."""
        start_U = torch.searchsorted(self.latent_P, latent_U)
        stop_U = torch.searchsorted(self.latent_P, latent_U, right=True)
        low, high = int(start_U[0]), int(stop_U[-1])
        coeff_P, offset_U = self.coeff_P[low:high], start_U - low
        weights = torch.nn.functional.embedding_bag(
            self.row_P[low:high], self.rows_BD, offset_U, mode="sum", per_sample_weights=coeff_P
        )
        segments = torch.repeat_interleave(stop_U - start_U, output_size=high - low)
        bias = coeff_P.new_zeros(len(latent_U)).index_add_(0, segments, coeff_P)
        return weights, bias


@dataclass
class _Tile:
    """Some touched latents, ascending, and the terms that touch them."""

    latent_U: Tensor
    pairs: "_Pairs"

    def encoder(self) -> tuple[Tensor, Tensor]:
        """Gradients of the rows of W_enc [U, D] and of b_enc [U]."""
        found = [term.gradient(self.latent_U) for term in self.pairs.encoder]
        return sum_all([w for w, _ in found]), sum_all([b for _, b in found])

    def decoder(self) -> Tensor:
        """Gradients of the rows of W_dec, [U, E]."""
        return sum_all([term.gradient(self.latent_U)[0] for term in self.pairs.decoder])


@dataclass
class _Pairs:
    encoder: list[_SortedTerm]
    decoder: list[_SortedTerm]

    def tiles(self) -> list[_Tile]:
        """Every touched latent, once."""
        touched = torch.cat([term.latent_P for term in [*self.encoder, *self.decoder]]).unique()
        return [_Tile(latent_U, self) for latent_U in touched.split(TILE) if len(latent_U)]

    def finite(self) -> Tensor:
        """Whether all coefficients and rows are finite, so that every gradient is."""
        terms = [*self.encoder, *self.decoder]
        return torch.stack([torch.isfinite(t.coeff_P.sum() + t.rows_BD.sum()) for t in terms]).all()


def sum_all(values: list[Tensor]) -> Tensor:
    """The sum of equal shapes."""
    return torch.stack(values).sum(0) if len(values) > 1 else values[0]


def _grad(parameter: Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
