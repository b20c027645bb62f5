"""The row-lazy Adam: an update visits only the rows that a step touched, and no dense gradient is made.

Gradients of the big weights arrive as sums over (row, latent) pairs (`RowTerm`); a kernel sorts them by
latent once and gives each touched latent its gradient, its moments and its new row (`kernels.row_update`).
Moments of a row decay by beta ** (steps since it was last touched) when it is touched next.

With beta1 = 0 this is exactly dense Adam(0, beta2): an untouched row has no gradient, so dense Adam would not
move it either. With beta1 > 0 it is not dense Adam: momentum does not move a row between touches.
The moments of a latent live on the replica that owns it; that replica gets the pairs of all replicas.
"""

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.config.sections import OptimConfig
from sae_dist.core.types import Clock, RowTerm, untimed
from sae_dist.distributed.collectives import Axis
from sae_dist.distributed.mesh import Topology
from sae_dist.kernels.row_update import AdamStep, PairTerm, RowState, RowUpdate, TiledUpdate
from sae_dist.optim.engine import FusedAdam, State, Trainable, lr_factor


class RowAdam:
    """An Adam over touched rows for W_enc, b_enc and W_dec, and torch's for the few replicated parameters."""

    def __init__(
        self,
        cfg: OptimConfig,
        model: Trainable,
        topology: Topology,
        kernel: type[RowUpdate] = TiledUpdate,
        clock: Clock = untimed,
    ):
        self.cfg, self.model, self.topology, self.kernel = cfg, model, topology, kernel
        self.clock = clock
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
        self.number = 0
        self.touched_F = torch.zeros(self.rows, dtype=torch.int64, device=like["W_enc"].device)

    def step(self, total: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Run backward from `total` and make one update; see `Engine.step`."""
        with self.clock("backward"):
            total.backward()
        with torch.no_grad(), self.clock("step"):
            return self._apply(lr)

    def _apply(self, lr: float) -> tuple[Tensor, Tensor]:
        for parameter in self.replicated.values():
            self.topology.consumers.sum(_grad(parameter))
        encoder, decoder = self._collect()
        small = torch.stack([_grad(p).square().sum() for p in self.replicated.values()]).sum()
        good = _finite([*encoder, *decoder]) & torch.isfinite(small)
        bad = self.topology.consumers.max((~good).to(small.dtype))
        rows = self.kernel(encoder, decoder, self._rows())
        scale = None
        if self.cfg.clip is not None:
            norm = (self.topology.consumers.sum(rows.squares()) + small).sqrt()
            scale = self.cfg.clip / norm.clamp(min=self.cfg.clip)
            for parameter in self.replicated.values():
                _grad(parameter).mul_(scale)
        rates = {name: lr * self.factors[name] for name in self.weights}
        step = AdamStep(rates, self.cfg.beta1, self.cfg.beta2, self.cfg.eps, self.number + 1)
        squares = rows.move(step, bad, scale)
        # Counted on the host, which would wait for Adam's own counter. That leaves out a step whose gradients
        # are not finite, and this does not; but such a step is the run's last but one, and is not kept.
        self.number += 1
        if scale is None:
            norm = (self.topology.consumers.sum(squares) + small).sqrt()
        self.adam.update(lr, bad.float())
        for parameter in self.replicated.values():
            parameter.grad = None
        self._share()
        return norm, bad.float()

    def state(self) -> State:
        """Return moments and last touches by parameter, for checkpoints."""
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
        """The number of updates made so far, without steps whose gradients were not finite."""
        return self.adam.step_count

    @updates.setter
    def updates(self, value: int) -> None:
        self.adam.step_count = self.number = value

    def _collect(self) -> tuple[list[PairTerm], list[PairTerm]]:
        """Return all replicas' pairs of this step whose latents this replica owns, of W_enc and of W_dec."""
        terms = self.model.row_terms
        assert terms is not None
        self.model.row_terms = {"W_enc": [], "W_dec": []}
        last = self.first + self.rows
        encoder, decoder = (
            [_gathered(term, self.topology.dp, self.first, last) for term in terms[name]]
            for name in ("W_enc", "W_dec")
        )
        return encoder, decoder

    def _rows(self) -> RowState:
        """Return the rows that this replica owns, in the form the kernel needs."""
        own = {
            name: weight.data[self.first : self.first + self.rows] for name, weight in self.weights.items()
        }
        return RowState(own, self.moment1, self.moment2, self.touched_F, self.model.unit_rows)

    def _share(self) -> None:
        """Copy to every replica the rows that the others own."""
        if self.topology.dp.size > 1:
            for weight in self.weights.values():
                own = weight.data[self.first : self.first + self.rows]
                weight.data.copy_(self.topology.dp.gather_rows(own))


def _gathered(term: RowTerm, dp: Axis, first: int, last: int) -> PairTerm:
    """Return the pairs of all replicas for owned latents only, numbered from `first`."""
    counts = torch.diff(term.offsets_B, append=term.offsets_B.new_full((1,), len(term.latent_P)))
    row_P = torch.repeat_interleave(counts, output_size=len(term.latent_P)) + dp.rank * len(counts)
    latent_P, coeff_P, row_P = (dp.gather_ragged(t) for t in (term.latent_P, term.coeff_P, row_P))
    rows_BD = dp.gather_rows(term.rows_BD)
    if dp.size > 1:
        own_P = (latent_P >= first) & (latent_P < last)
        latent_P, coeff_P, row_P = latent_P[own_P] - first, coeff_P[own_P], row_P[own_P]
    return PairTerm(latent_P, coeff_P, row_P, rows_BD)


def _finite(terms: list[PairTerm]) -> Tensor:
    """Return whether all coefficients and rows are finite, so that every gradient is, as a 0-d bool."""
    return torch.stack([torch.isfinite(t.coeff_P.sum() + t.rows_BD.sum()) for t in terms]).all()


def _grad(parameter: Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
