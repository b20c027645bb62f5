"""The change that steering makes of a model's activations: a part that is the same for all, one by code.

Letters: as core.types; I the named latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_dist.interpret.interventions import ADD, PROJECT_OUT, Intervention
from sae_dist.interpret.rivals import Rivals
from sae_dist.interpret.some import SomeLatents


@dataclass(frozen=True)
class Moves:
    """The change of the named latents, on a device: change = value + slope * code, along directions.

    Attributes:
        units: the unit vectors that are projected out.
        silent_1E: the change of activations where no code counts, but for `units`; None: there is none.
        silent_norm: its norm.
        W_enc_DI, screen_I: activations whose product with W_enc_DI plus screen_I is not above 0 have no score
            above 0; most_silent: -screen_I of a single latent.
        rivals: what may tell that a single latent is not selected though its score is above 0.
    """

    some: SomeLatents
    directions_IE: Tensor
    value_I: Tensor
    slope_I: Tensor
    units: list[Tensor]
    silent_1E: Tensor | None
    silent_norm: float
    W_enc_DI: Tensor
    screen_I: Tensor
    most_silent: float
    rivals: Rivals | None = None

    def silent(self, x_NSD: Tensor) -> bool:
        """Return whether it is certain that no code of some activations is above zero."""
        score_NSI = torch.matmul(x_NSD, self.W_enc_DI)
        if score_NSI.numel() == 1:
            above = score_NSI.item() - self.most_silent
            return above <= 0 or self.rivals is not None and self.rivals.surpass(x_NSD.view(-1), above)
        return (score_NSI + self.screen_I).max().item() <= 0

    @classmethod
    def of(
        cls,
        some: SomeLatents,
        directions_IE: Tensor,
        interventions: Mapping[int, Intervention],
        device: torch.device,
        rivals: Rivals | None = None,
    ) -> "Moves":
        how = [each.how for each in interventions.values()]
        value_I = directions_IE.new_tensor([each.value or 0.0 for each in interventions.values()]).to(device)
        slope_I = directions_IE.new_tensor([0.0 if each in (ADD, PROJECT_OUT) else -1.0 for each in how])
        directions_IE = directions_IE.to(device)
        projected = [row_E for each, row_E in zip(how, directions_IE, strict=True) if each == PROJECT_OUT]
        units = [torch.nn.functional.normalize(row_E, dim=0) for row_E in projected]
        silent_1E = (value_I @ directions_IE)[None]
        norm = float(silent_1E.norm())
        silent = None if norm == 0 else silent_1E
        some = some.to(device)
        screen_I = screen(some)
        return cls(
            some=some,
            directions_IE=directions_IE,
            value_I=value_I,
            slope_I=slope_I.to(device),
            units=units,
            silent_1E=silent,
            silent_norm=norm,
            W_enc_DI=some.W_enc_ID.T.contiguous(),
            screen_I=screen_I,
            most_silent=-float(screen_I.min()),
            rivals=rivals,
        )


def screen(some: SomeLatents) -> Tensor:
    """Return b_enc - W_enc b_dec, larger by what rounding makes of the product [I]."""
    sae, W_ID = some.sae, some.W_enc_ID
    bias_I = W_ID.new_zeros(len(W_ID)) if sae.b_enc_F is None else sae.b_enc_F
    if sae.transcoder:
        return bias_I
    # W x - W b differs from W (x - b) by the rounding of both products, at most D eps |W| |b| of each beyond
    # that of W (x - b) itself.
    off_I = 4 * W_ID.shape[1] * torch.finfo(W_ID.dtype).eps * W_ID.norm(dim=1) * sae.b_dec_E.norm()
    return bias_I - W_ID @ sae.b_dec_E + off_I
