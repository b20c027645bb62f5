"""The host of the fused update: gradients of touched rows, Adam and unit norm in one walk over the pairs.

No gradient is ever in memory: a program sums a latent's gradient in registers and updates its row. Pairs are
sorted by latent, the encoder's before the decoder's; the number of touched latents stays on the device.
"""

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.kernels import triton_adam
from sae_dist.kernels.row_update import AdamStep, PairTerm, RowState
from sae_dist.kernels.triton_plan import WIDEST_ROW, update_plan
from sae_dist.kernels.triton_sparse import ready, run_windows, summed

WEIGHTS = ("W_enc", "W_dec")


class FusedUpdate:
    """The row update as a Triton program; see `kernels.row_update.RowUpdate`.

    Raises:
        ConfigError: the rows are too wide for the registers.
    """

    def __init__(self, encoder: list[PairTerm], decoder: list[PairTerm], state: RowState):
        self.state = state
        widest = max(state.weights[name].shape[1] for name in WEIGHTS)
        if widest > WIDEST_ROW:
            raise ConfigError(
                f"kernels=triton: optim.kind=row_adam supports rows of up to {WIDEST_ROW}, not {widest}; "
                "use kernels=torch or optim.kind=adam"
            )
        latent_P, coeff_P = (
            torch.cat([getattr(term, name) for term in [*encoder, *decoder]])
            for name in ("latent_P", "coeff_P")
        )
        row_P, self.rows = _rows(encoder, decoder)
        decodes_P = torch.arange(len(latent_P), device=latent_P.device) >= sum(
            len(t.latent_P) for t in encoder
        )
        self.key_P, order_P = (2 * latent_P + decodes_P).sort(stable=True)
        self.coeff_P, self.row_P = coeff_P[order_P], row_P[order_P]
        self._find_segments()
        self.partial = [
            run_windows(self.key_P, self.row_P, self.coeff_P, rows, parity)
            for parity, rows in enumerate(self.rows)
        ]

    def _find_segments(self) -> None:
        """Find each touched latent's pairs; then empty segments, up to a number known without a host sync."""
        pairs, device = len(self.key_P), self.key_P.device
        latent_P = self.key_P >> 1
        segment_P = (torch.diff(latent_P, prepend=latent_P[:1]) != 0).cumsum(0)
        self.most = min(pairs, len(self.state.touched_F))
        self.start_U = torch.searchsorted(segment_P, torch.arange(self.most + 1, device=device))
        self.latent_U = latent_P[self.start_U[:-1].clamp(max=max(pairs - 1, 0))]
        self.middle_U = torch.searchsorted(self.key_P, 2 * self.latent_U + 1)

    def squares(self) -> Tensor:
        """Return the squared norm of all gradients; see `RowUpdate.squares`."""
        return self._run(None, None, None)

    def move(self, step: AdamStep, bad: Tensor, scale: Tensor | None) -> Tensor:
        """Update every touched row; see `RowUpdate.move`."""
        return self._run(step, bad, scale)

    def _run(self, step: AdamStep | None, bad: Tensor | None, scale: Tensor | None) -> Tensor:
        state, device = self.state, self.key_P.device
        dtype = state.weights["W_enc"].dtype
        # Two tensors, not rows of one: their alignment is compiled in, and must not depend on the pairs.
        squares = [torch.zeros(self.most, dtype=summed(dtype), device=device) for _ in WEIGHTS]
        one = torch.ones(1, dtype=dtype, device=device)
        numbers = _numbers(step, device) if step else one.double().expand(2, 8)
        moment1 = state.moment1 or state.moment2
        for decoder, name in enumerate(WEIGHTS if self.most else ()):
            weight = state.weights[name]
            plan = update_plan(
                weight.shape[1],
                dtype,
                decoder=bool(decoder),
                unit=name in state.unit_rows,
                momentum=bool(state.moment1),
                move=step is not None,
            )
            triton_adam.update_rows[(self.most,)](
                self.latent_U, self.start_U, self.middle_U, self.row_P, self.coeff_P, self.rows[decoder],
                self.partial[decoder], weight, moment1[name], state.moment2[name], state.weights["b_enc"],
                moment1["b_enc"], state.moment2["b_enc"], state.touched_F, squares[decoder],
                one if scale is None else scale, one if bad is None else bad, numbers[decoder],
                **plan.options,
            )  # fmt: skip
        return squares[0].sum() + squares[1].sum()


def _rows(encoder: list[PairTerm], decoder: list[PairTerm]) -> tuple[Tensor, list[Tensor]]:
    """Return every pair's place in its weight's rows, and those rows: all terms concatenated, none twice."""
    places, rows = [], []
    for terms in (encoder, decoder):
        known: dict[int, int] = {}
        found: list[Tensor] = []
        for term in terms:
            if term.rows_BD.data_ptr() not in known:
                known[term.rows_BD.data_ptr()] = sum(map(len, found))
                found.append(term.rows_BD)
            places.append(term.row_P + known[term.rows_BD.data_ptr()])
        rows.append(ready(*found)[0] if len(found) == 1 else torch.cat(found))
    return torch.cat(places), rows


def _numbers(step: AdamStep, device: torch.device) -> Tensor:
    """Return the step's numbers for the programs of encoder and decoder; copied without waiting."""
    common = [step.beta1, step.beta2, *step.corrections, step.eps, step.number]
    rows = [[step.lr[name], step.lr["b_enc"], *common] for name in WEIGHTS]
    numbers = torch.tensor(rows, dtype=torch.float64, pin_memory=device.type == "cuda")
    return numbers.to(device, non_blocking=True)
