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
from sae_dist.interpret.interventions import ADD, PROJECT_OUT, Intervention
from sae_dist.interpret.moves import Moves
from sae_dist.interpret.session import Session, replaced, rows_at
from sae_dist.interpret.some import SomeLatents
from sae_dist.kernels.torch_backend import topk_rows

EVERYWHERE = ("all", "every")
"""Words for positions that tokens' places in the text have no part in."""
LARGE = 0.5
"""The share of the usual norm of activations above which a change is remarked on."""


class Steered(Session):
    """A model that is steered.

    Attributes:
        interventions: by latent, with values in units of codes.
        intervened: how many activations were changed so far.
        largest: the largest change so far, as a share of the median norm of activations: those of the last
            forward of more than one token.
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
        self._places = not (isinstance(positions, str) and positions in EVERYWHERE)
        self._some = dictionary.some(latents)
        self._directions_IE = self._some.W_dec_IE if directions_IE is None else directions_IE
        self._placed: dict[torch.device, Moves] = {}
        self._moves: Moves | None = None
        self._dtype = dictionary.dtype
        self.intervened, self.largest, self._typical, self._looked_at = 0, 0.0, 0.0, 0.0
        self.approximate = self._approximation(statistics)
        self._warned = False

    def _approximation(self, statistics: Any) -> str | None:
        self._threshold: float | None = None
        how = [each.how for each in self.interventions.values()]
        self._needs_codes = any(each not in (ADD, PROJECT_OUT) for each in how)
        self._same = set(how) == {ADD} and not self.again
        self._screens = self._needs_codes and self._selects and not self.again and PROJECT_OUT not in how
        if not self._selects or not self._needs_codes or self.dictionary.fits:
            return None
        if self.again:
            raise ConfigError("again=True needs the whole dictionary, which does not fit into memory")
        self._screens = False
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
        if at_NS is None and self._same:
            return self._shifted(forward, y_NSE)
        x_BD = rows_at(x_NSD, at_NS)
        y_BE = x_BD if y_NSE is x_NSD else rows_at(y_NSE, at_NS)
        if not len(x_BD):
            return y_NSE
        moves = self._moves_on(x_BD.device)
        # Where nothing changes, activations stay as they are to the bit.
        delta_BE, moved_B1 = self._delta(moves, x_BD.to(self._dtype), y_BE)
        self.intervened += len(x_BD)
        if delta_BE is None:
            return y_NSE
        self._look(forward, moves, y_BE, delta_BE)
        new_BE = (y_BE + delta_BE).to(y_BE.dtype)
        return replaced(y_NSE, at_NS, new_BE if moved_B1 is None else torch.where(moved_B1, new_BE, y_BE))

    def _shifted(self, forward: Forward, y_NSE: Tensor) -> Tensor:
        """Return all activations moved by the same, where codes do not count."""
        moves = self._moves_on(y_NSE.device)
        self.intervened += forward.shape[0] * forward.shape[1]
        if moves.silent_1E is None:
            return y_NSE
        self._look(forward, moves, y_NSE, moves.silent_1E)
        moved_NSE = y_NSE + moves.silent_1E
        return moved_NSE if moved_NSE.dtype == y_NSE.dtype else moved_NSE.to(y_NSE.dtype)

    def quick(self, forward: Forward, y_NSE: Tensor) -> Tensor | None:
        """Return generated tokens moved by the same; None: codes may count, or it is not that simple.

        It is for most tokens, and a small model takes little more time for one than some calls of Python do.
        """
        moves = self._moves
        if moves is None or y_NSE.dtype != self._dtype or self._screens and not y_NSE.is_cpu:
            return None
        if self._positions == "all" and forward.ordinary() is not None:
            return None
        if self._screens and not moves.silent(y_NSE):
            return None
        self.intervened += forward.shape[0]
        if moves.silent_1E is None:
            return y_NSE
        if moves.silent_norm > self._looked_at:
            self._look(forward, moves, y_NSE, moves.silent_1E)
        return y_NSE + moves.silent_1E

    def _delta(self, moves: Moves, x_BD: Tensor, y_BE: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return by how much activations change [B, E], or [1, E]; None: not. And which do; None: all."""
        if self.again:
            delta_BE = self._selected_again(x_BD)
            return delta_BE, (delta_BE != 0).any(1, keepdim=True)
        code_BI = self._codes(moves.some, x_BD)
        if code_BI is None and not moves.units:
            return moves.silent_1E, None
        if code_BI is None:
            code_BI = x_BD.new_zeros(len(x_BD), len(moves.some.latents))
        change_BI = torch.addcmul(moves.value_I, code_BI, moves.slope_I)
        delta_BE = change_BI @ moves.directions_IE
        if not moves.units:
            return delta_BE, change_BI.any(1, keepdim=True)
        y_BE = y_BE.to(delta_BE.dtype)
        for unit_E in moves.units:
            delta_BE = delta_BE - ((y_BE + delta_BE) @ unit_E)[:, None] * unit_E
        return delta_BE, (delta_BE != 0).any(1, keepdim=True)

    def _codes(self, some: SomeLatents, x_BD: Tensor) -> Tensor | None:
        """Return the codes of the named latents [B, I]; None: all are 0, or no intervention asks for them."""
        if not self._needs_codes:
            return None
        if not self._selects or self.approximate is not None:
            return some.codes(x_BD, self._threshold)
        return self.on(x_BD.device).codes_of(some, x_BD)

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

    def _moves_on(self, device: torch.device) -> Moves:
        if device not in self._placed:
            alone = self._screens and device.type == "cpu" and len(self.interventions) == 1
            rivals = self.on(device).rivals if alone else None
            named = self._some, self._directions_IE, self.interventions
            self._placed[device] = Moves.of(*named, device, rivals)
            simple = not self._places and (self._same or self._screens)
            self._moves = self._placed[device] if simple and len(self._placed) == 1 else None
        return self._placed[device]

    def _look(self, forward: Forward, moves: Moves, y_BE: Tensor, delta_BE: Tensor) -> None:
        """Note the largest change, and remark on the first that is large."""
        if y_BE.device.type != "cpu":
            return  # reading a number from a GPU would stop it
        if forward.shape[1] > 1 or not self._typical:
            self._typical = float(y_BE.float().norm(dim=-1).median())
            self._looked_at = 0.0
        size = moves.silent_norm
        if delta_BE is not moves.silent_1E:
            size = float(torch.linalg.vector_norm(delta_BE, dim=1).max())
        self._looked_at = max(self._looked_at, size)
        share = size / max(self._typical, 1e-30)
        self.largest = max(self.largest, share)
        if share > LARGE and not self._warned:
            self._warned = True
            warnings.warn(
                f"the change is {share:.2f} of the median norm of activations, more than {LARGE:g}: the "
                "model may leave what it was trained on",
                stacklevel=2,
            )


def steer(dictionary: Dictionary, lm: Any, interventions: Mapping[int, Intervention], **how: Any) -> Steered:
    """Move a model along named latents for a `with` block; see `Steered`.

    Raises:
        ConfigError: the model is not the dictionary's, or a latent or a dose is not valid.
    """
    return Steered(dictionary, lm, interventions, **how)
