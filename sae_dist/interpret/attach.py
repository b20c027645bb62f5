"""A dictionary spliced into a model: its codes of every forward, with gradients, and edits of them.

Letters: as core.types.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.codes import Codes
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.forward import Forward, Positions
from sae_dist.interpret.interventions import PROJECT_OUT, Intervention
from sae_dist.interpret.session import Session, replaced, rows_at

Edit = Mapping[int, Intervention] | Intervention | None
"""Interventions by latent, or one for all latents that fire."""


class Attached(Session):
    """A model with a dictionary spliced in: activations become what its codes reconstruct, plus the rest.

    With `error`, what it does not explain is kept from before the edit: without an edit the model
    computes the same to the bit, and an edit moves activations by its difference alone. With a gradient
    enabled, after `backward` the gradients are in `codes.values.grad` and `error.grad`, each with the others
    held fixed; what comes before the hook gets its own as if nothing was spliced. Without `error`,
    activations at `positions` become the reconstruction, and gradients flow to earlier layers through codes.

    Attributes:
        codes: of the last forward, for every token; padding has no codes.
        history: the codes of every forward, without gradients.
        error: what the dictionary did not explain at the last forward's tokens [B, E].
        reconstruction: at the same tokens [B, E].
    """

    def __init__(
        self,
        dictionary: Dictionary,
        lm: Any,
        *,
        error: bool,
        bias: bool,
        edit: Edit,
        positions: Positions = "all",
        force: bool = False,
    ):
        super().__init__(dictionary, lm, force)
        self._keeps, self._bias, self._positions = error, bias, positions
        self._edit = resolved(dictionary, edit)
        self.codes: Codes | None = None
        self.error: Tensor | None = None
        self.reconstruction: Tensor | None = None
        self.history: list[Codes] = []

    def act(self, forward: Forward, x_NSD: Tensor, y_NSE: Tensor) -> Tensor:
        """Return the activations with the dictionary spliced in; see `Session.act`."""
        d = self.on(x_NSD.device)
        real_NS = forward.real_NS
        x_BD, y_BE = rows_at(x_NSD, real_NS).to(d.dtype), rows_at(y_NSE, real_NS).to(d.dtype)
        learns = torch.is_grad_enabled()
        codes = d.encode(x_BD.detach() if self._keeps else x_BD)
        value_P = codes.values
        if learns and not value_P.requires_grad:
            value_P = value_P.detach().requires_grad_()
        if learns and not value_P.is_leaf:
            value_P.retain_grad()
        codes = codes.with_values(value_P)
        whole_BE = d.decode(codes, x_BD.detach() if self._keeps else x_BD)
        error_BE = (y_BE - whole_BE).detach()
        if learns:
            error_BE.requires_grad_()
        self.codes = spread(codes, real_NS, forward.shape)
        self.history.append(self.codes.with_values(value_P.detach()))
        self.error, self.reconstruction = error_BE, whole_BE
        return self._spliced(d, forward, y_NSE, codes, whole_BE, error_BE)

    def _spliced(
        self,
        d: Dictionary,
        forward: Forward,
        y_NSE: Tensor,
        codes: Codes,
        whole_BE: Tensor,
        error_BE: Tensor,
    ) -> Tensor:
        """Return the activations, from the codes of all real tokens and their reconstruction."""
        at_NS = forward.mask(self._positions)
        at_B = None if at_NS is None else rows_at(at_NS[..., None], forward.real_NS).squeeze(1)
        moved_BE = self._moved(d, codes, at_B, whole_BE)
        base_NSE, new_BE = y_NSE, whole_BE
        if self._keeps:
            if whole_BE.requires_grad:
                base_NSE = _Splice.apply(y_NSE, whole_BE, error_BE, forward.real_NS)
            if moved_BE is None:
                return base_NSE
            new_BE = rows_at(base_NSE, forward.real_NS).to(d.dtype)
        if moved_BE is not None:
            new_BE = new_BE + moved_BE
        return replaced(base_NSE, at_NS, new_BE if at_B is None else new_BE[at_B])

    def _moved(self, d: Dictionary, codes: Codes, at_B: Tensor | None, whole_BE: Tensor) -> Tensor | None:
        """Return by how much edits move the reconstruction [B, E]; None: there are none."""
        bias_E = None if self._bias else -d.b_dec
        if self._edit is None:
            return None if bias_E is None else bias_E.expand_as(whole_BE)
        change_P, extra = changes(codes, self._edit, at_B)
        moved_BE = _sum_rows(codes, change_P, d.W_dec)
        for latent, row_b, change_b in extra:
            row_E = d.W_dec[latent]
            moved_BE = moved_BE.index_add(0, row_b, change_b[:, None] * row_E)
        return moved_BE if bias_E is None else moved_BE + bias_E


def attach(dictionary: Dictionary, lm: Any, **how: Any) -> Attached:
    """Splice a dictionary into a model for a `with` block; see `Attached`.

    Raises:
        ConfigError: the model is not the dictionary's, or has no such hook, or an edit is not valid.
    """
    return Attached(dictionary, lm, **how)


def resolved(dictionary: Dictionary, edit: Edit) -> Edit:
    """Return an edit whose latents exist and whose values are codes.

    Raises:
        ConfigError: a latent does not exist, or statistics are needed that were never measured.
    """
    if edit is None:
        return None
    if isinstance(edit, Intervention):
        if edit.how != "ablate":
            raise ConfigError(f"edit={edit} for all latents: only ablate() is; name latents: {{123: {edit}}}")
        return edit
    statistics = dictionary.place.statistics(dictionary.num_latents) if edit else None
    latents = dictionary.checked(list(edit))
    for each in edit.values():
        if not isinstance(each, Intervention):
            raise ConfigError(f"{each!r} is no intervention; write sd.clamp(4.0), sd.add(2.0) or sd.ablate()")
        if each.how == PROJECT_OUT:
            raise ConfigError("project_out() changes activations, not codes; use d.steer")
    return {n: each.resolved(n, statistics) for n, each in zip(latents, edit.values(), strict=True)}


def changes(
    codes: Codes, edit: Mapping[int, Intervention] | Intervention, at_B: Tensor | None
) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
    """Return by how much an edit changes codes.

    Returns:
        The change of each code [P]; and for latents that the edit wakes where they are silent, their number,
        the rows [b] and the changes [b].
    """
    row_P = codes.rows
    meant_P = torch.ones_like(row_P, dtype=torch.bool) if at_B is None else at_B[row_P]
    if isinstance(edit, Intervention):
        return torch.where(meant_P, -codes.values, 0.0), []
    change_P = torch.zeros_like(codes.values)
    woken = []
    for latent, how in edit.items():
        mine_P = meant_P & (codes.latents == latent)
        change_P = torch.where(mine_P, how.new(codes.values) - codes.values, change_P)
        silent_B = (
            torch.ones(len(codes), dtype=torch.bool, device=row_P.device) if at_B is None else at_B.clone()
        )
        silent_B[row_P[mine_P]] = False
        row_b = silent_B.nonzero().squeeze(1)
        zero_b = codes.values.new_zeros(len(row_b))
        new_b = how.new(zero_b)
        if bool((new_b != 0).any()):
            woken.append((latent, row_b, new_b))
    return change_P, woken


def spread(codes: Codes, real_NS: Tensor | None, shape: tuple[int, int]) -> Codes:
    """Return codes of the real tokens as codes of all tokens [N, S]; those of padding are none."""
    indptr = codes.indptr
    if real_NS is not None:
        counts_T = torch.zeros(real_NS.numel(), dtype=torch.int64, device=indptr.device)
        counts_T[real_NS.flatten()] = indptr.diff()
        indptr = torch.cat([indptr[:1], counts_T.cumsum(0)])
    return Codes(indptr, codes.latents, codes.values, codes.num_latents, tuple(shape))


def _sum_rows(codes: Codes, weight_P: Tensor, W_FE: Tensor) -> Tensor:
    """Return the weighted sum of the decoder rows of each row's codes [B, E]."""
    return torch.nn.functional.embedding_bag(
        codes.latents, W_FE, codes.indptr[:-1], mode="sum", per_sample_weights=weight_P
    )


class _Splice(torch.autograd.Function):
    """The activations to the bit; their gradient goes to them, to the reconstruction and to the error."""

    @staticmethod
    def forward(
        ctx: Any, y_NSE: Tensor, whole_BE: Tensor, error_BE: Tensor, real_NS: Tensor | None
    ) -> Tensor:
        ctx.real_NS, ctx.dtype = real_NS, whole_BE.dtype
        return y_NSE.clone()

    @staticmethod
    def backward(ctx: Any, grad_NSE: Tensor) -> tuple[Tensor | None, ...]:
        grad_BE = rows_at(grad_NSE, ctx.real_NS).to(ctx.dtype)
        return grad_NSE, grad_BE, grad_BE, None
