"""Steering: a model's activations moved along named latents, of which alone the rows are read.

    x' = x + sum over latents (c_i - z_i) d_i

What the dictionary does not explain cancels out, so nothing else changes. Letters: as core.types; I the named
latents.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.forward import Forward, Positions
from sae_dist.interpret.interventions import PROJECT_OUT, Intervention
from sae_dist.interpret.session import Session, replaced, rows_at
from sae_dist.interpret.some import SomeLatents
from sae_dist.kernels.torch_backend import topk_rows

LARGE = 0.5
"""The share of the usual norm of activations above which a change is remarked on."""


class Steered(Session):
    """A model that is steered.

    Attributes:
        interventions: by latent, with values in units of codes.
        intervened: how many activations were changed so far.
        largest: the largest change so far, as a share of the median norm of the forward's activations.
        approximate: None if codes are exact; of a TopK dictionary too large for memory, in words, how the
            codes of the named latents are estimated.
        again: whether a TopK dictionary selects its latents again after the change.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        lm: Any,
        interventions: Mapping[int, Intervention],
        *,
        positions: Positions = "all",
        again: bool = False,
        force: bool = False,
        directions_IE: Tensor | None = None,
    ):
        """Check everything, and read the rows of the latents.

        Args:
            directions_IE: what activations are moved along, in place of the latents' decoder rows: a control.
        """
        super().__init__(dictionary, lm, force)
        latents = dictionary.checked(list(interventions))
        for each in interventions.values():
            if not isinstance(each, Intervention):
                raise ConfigError(
                    f"{each!r} is no intervention; write sd.clamp(4.0), sd.add(2.0) or sd.ablate()"
                )
        statistics = dictionary.place.statistics(dictionary.num_latents) if latents else None
        self.interventions = {
            latent: how.resolved(latent, statistics)
            for latent, how in zip(latents, interventions.values(), strict=True)
        }
        self._selects = dictionary.sae.form.codes is None
        if again and not self._selects:
            raise ConfigError(f"again=True is for topk; a {dictionary.kind} dictionary selects nothing")
        self.again, self._positions = again, positions
        self._some = dictionary.some(latents)
        self._directions_IE = self._some.W_dec_IE if directions_IE is None else directions_IE
        self._placed: dict[torch.device, tuple[SomeLatents, Tensor]] = {}
        self.intervened, self.largest = 0, 0.0
        self.approximate = self._approximation(statistics)
        self._warned = False

    def _approximation(self, statistics: Any) -> str | None:
        self._threshold: float | None = None
        needs = any(how.how not in ("add", PROJECT_OUT) for how in self.interventions.values())
        if not self._selects or not needs or self.dictionary.fits:
            return None
        if self.again:
            raise ConfigError("again=True needs the whole dictionary, which does not fit into memory")
        self._threshold = statistics.threshold if statistics is not None else 0.0
        known = (
            f"{self._threshold:.4g}, the median of the k-th code"
            if self._threshold
            else "0: none was measured"
        )
        said = f"the dictionary does not fit into memory: a score counts as selected above {known}"
        warnings.warn(said, stacklevel=4)
        return said

    def act(self, forward: Forward, x_NSD: Tensor, y_NSE: Tensor) -> Tensor:
        """Return the steered activations; see `Session.act`."""
        if not self.interventions:
            return y_NSE
        at_NS = forward.mask(self._positions)
        x_BD, y_BE = rows_at(x_NSD, at_NS), rows_at(y_NSE, at_NS)
        if not len(x_BD):
            return y_NSE
        delta_BE = self._delta(x_BD.to(self.dictionary.dtype), y_BE.to(self.dictionary.dtype))
        self.intervened += len(x_BD)
        self._look(y_BE, delta_BE)
        # Where nothing changes, activations stay as they are to the bit.
        new_BE = (y_BE + delta_BE).to(y_BE.dtype)
        return replaced(y_NSE, at_NS, torch.where((delta_BE != 0).any(1, keepdim=True), new_BE, y_BE))

    def _delta(self, x_BD: Tensor, y_BE: Tensor) -> Tensor:
        """Return by how much activations change [B, E]."""
        some, directions_IE = self._on_device(x_BD.device)
        if self.again:
            return self._selected_again(x_BD)
        code_BI = self._codes(some, x_BD)
        how = self.interventions.values()
        change_BI = torch.stack(
            [
                torch.zeros_like(code_BI[:, n])
                if each.how == PROJECT_OUT
                else each.new(code_BI[:, n]) - code_BI[:, n]
                for n, each in enumerate(how)
            ],
            1,
        )
        delta_BE = change_BI @ directions_IE
        for n, each in enumerate(how):
            if each.how == PROJECT_OUT:
                unit_E = torch.nn.functional.normalize(directions_IE[n], dim=0)
                delta_BE = delta_BE - ((y_BE + delta_BE) @ unit_E)[:, None] * unit_E
        return delta_BE

    def _codes(self, some: SomeLatents, x_BD: Tensor) -> Tensor:
        """Return the codes of the named latents [B, I]; those that no intervention asks for may be any."""
        needed = any(each.how not in ("add", PROJECT_OUT) for each in self.interventions.values())
        if not needed:
            return x_BD.new_zeros(len(x_BD), len(some.latents))
        if not self._selects or self.approximate is not None:
            return some.codes(x_BD, self._threshold)
        # A latent whose score is not above zero is not selected, whatever the others' scores are.
        score_BI = some.scores(x_BD)
        open_B = (score_BI > 0).any(1)
        code_BI = torch.zeros_like(score_BI)
        if bool(open_B.any()):
            codes = self.on(x_BD.device).encode(x_BD[open_B])
            code_BI[open_B] = torch.stack([codes.of_latent(each) for each in some.latents], 1)
        return code_BI

    def _selected_again(self, x_BD: Tensor) -> Tensor:
        """Return the change if k latents are selected again, the named ones by their new codes [B, E]."""
        d = self.on(x_BD.device)
        codes = d.encode(x_BD)
        k, named = d.k or 0, list(self.interventions)
        value_BK = x_BD.new_zeros(len(x_BD), k + len(named))
        latent_BK = torch.zeros(value_BK.shape, dtype=torch.int64, device=x_BD.device)
        slot_P = torch.arange(len(codes.latents), device=x_BD.device) - codes.indptr[codes.rows]
        value_BK[codes.rows, slot_P], latent_BK[codes.rows, slot_P] = codes.values, codes.latents
        for n, (latent, how) in enumerate(self.interventions.items()):
            value_BK[:, :k] = torch.where(latent_BK[:, :k] == latent, 0.0, value_BK[:, :k])
            value_BK[:, k + n], latent_BK[:, k + n] = how.new(codes.of_latent(latent)), latent
        best_BK, place_BK = topk_rows(value_BK, k)
        chosen_BK = latent_BK.gather(1, place_BK)
        new_BE = (best_BK.clamp(min=0)[..., None] * d.W_dec[chosen_BK]).sum(1)
        return new_BE - (
            d.decode(codes, x_BD) - d.decode(codes.with_values(torch.zeros_like(codes.values)), x_BD)
        )

    def _on_device(self, device: torch.device) -> tuple[SomeLatents, Tensor]:
        if device not in self._placed:
            self._placed[device] = self._some.to(device), self._directions_IE.to(device)
        return self._placed[device]

    def _look(self, y_BE: Tensor, delta_BE: Tensor) -> None:
        """Note the largest change, and remark on the first that is large."""
        if y_BE.device.type != "cpu":
            return  # reading a number from a GPU would stop it
        typical = float(y_BE.float().norm(dim=1).median())
        share = float(delta_BE.norm(dim=1).max()) / max(typical, 1e-30)
        self.largest = max(self.largest, share)
        if share > LARGE and not self._warned:
            self._warned = True
            warnings.warn(
                f"the change is {share:.2f} of the median norm of activations, more than {LARGE:g}: the "
                "model may leave what it was trained on",
                stacklevel=2,
            )


def steer(dictionary: Dictionary, lm: Any, interventions: Mapping[int, Intervention], **how: Any) -> Steered:
    """Steer a model along named latents for a `with` block; see `Steered`.

    Raises:
        ConfigError: the model is not the dictionary's, or a latent or a dose is not valid.
    """
    return Steered(dictionary, lm, interventions, **how)
