"""A watch list: the codes of a few named latents in every forward, from their rows alone.

Letters: as core.types; I the named latents.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.forward import Forward
from sae_dist.interpret.session import Session, rows_at

FITTED_TOKENS = 256
"""From so many tokens a threshold is fitted where none was measured; their codes are exact."""
CHECKED_TOKENS = 512
"""On so many tokens after these, decisions are compared with those of the whole dictionary."""


class Watched(Session):
    """A model whose activations are looked at, and not changed.

    Codes of ReLU, JumpReLU and gated dictionaries are exact. TopK selects by the scores of all latents, which
    a watch list does not compute: a score above a threshold counts as selected, and the first tokens are
    compared with the exact selection, if the encoder fits into memory.

    Attributes:
        latents: the named latents.
        codes: of the last forward [N, S, I]; 0 at padding.
        history: the codes of every forward.
        threshold: of TopK, in units of codes; None: codes are exact, or it is still being fitted.
        compared: on how many tokens decisions were compared with the exact selection.
        differ: how many of the `compared` x I decisions were others than in the exact selection.
        fired: in how many of them the latent fired, by the exact selection or by the threshold.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        lm: Any,
        latents: Sequence[int],
        *,
        threshold: float | None = None,
        check: int = CHECKED_TOKENS,
        force: bool = False,
    ):
        """Check everything, and read the rows of the latents.

        Args:
            threshold: of TopK; None: as it was measured, else fitted on the first tokens.
            check: on so many tokens decisions are compared with the exact selection.
        """
        super().__init__(dictionary, lm, force)
        self._places = False
        self.latents = dictionary.checked(list(latents))
        if not self.latents or len(set(self.latents)) < len(self.latents):
            raise ConfigError(f"latents={self.latents}: give at least one latent, and each once")
        self._selects = dictionary.sae.form.codes is None
        if threshold is not None and not self._selects:
            raise ConfigError(f"threshold is for topk; the codes of a {dictionary.kind} dictionary are exact")
        if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
            raise ConfigError(f"threshold={threshold} must be a finite number, at least 0")
        self._some = {dictionary.device: dictionary.some(self.latents)}
        self.threshold, self._check = threshold, check
        if self._selects and threshold is None:
            self.threshold = self._measured()
        self.codes: Tensor | None = None
        self.history: list[Tensor] = []
        self.compared = self.differ = self.fired = 0
        self._smallest: list[Tensor] = []

    @property
    def disagreement(self) -> float | None:
        """The share of decisions, token by latent, that differ from the exact selection; None: unknown."""
        if not self._selects:
            return 0.0
        return self.differ / (self.compared * len(self.latents)) if self.compared else None

    @property
    def approximate(self) -> str | None:
        """The way in which codes are estimated, in words; None: they are exact."""
        if not self._selects:
            return None
        if self.threshold is None:
            return f"exact for the first {FITTED_TOKENS} tokens, then by a threshold fitted on them"
        known = "compared with no exact selection"
        if self.compared:
            known = (
                f"{self.differ:,} of {self.compared * len(self.latents):,} decisions differ from the exact "
                f"selection, {self.fired:,} of them with a code"
            )
        return f"a score above {self.threshold:.4g} counts as selected; {known}"

    def act(self, forward: Forward, x_NSD: Tensor, y_NSE: Tensor) -> Tensor:
        """Note the codes, and return the activations as they are; see `Session.act`."""
        with torch.no_grad():
            x_BD = rows_at(x_NSD, forward.real_NS).to(self.dictionary.dtype)
            code_BI = self._codes(x_BD)
            if forward.real_NS is not None:
                whole_NSI = code_BI.new_zeros(*forward.shape, len(self.latents))
                whole_NSI[forward.real_NS] = code_BI
                code_BI = whole_NSI
            self.codes = code_BI.view(*forward.shape, -1)
        self.history.append(self.codes)
        return y_NSE

    def _measured(self) -> float | None:
        """Return the threshold that was measured; 0 if there is none and none can be fitted."""
        statistics = self.dictionary.place.statistics(self.dictionary.num_latents)
        if statistics is not None and statistics.threshold > 0:
            return statistics.threshold
        return None if self.dictionary.fits else 0.0

    def _codes(self, x_BD: Tensor) -> Tensor:
        """Return the codes of the named latents [B, I]."""
        some = self._some.get(x_BD.device)
        if some is None:
            some = self._some.setdefault(x_BD.device, next(iter(self._some.values())).to(x_BD.device))
        if not self._selects:
            return some.codes(x_BD)
        if self.threshold is None:
            return self._fit(x_BD)
        code_BI = some.codes(x_BD, self.threshold)
        if self.compared < self._check and self.dictionary.fits:
            self._compare(x_BD, code_BI)
        return code_BI

    def _fit(self, x_BD: Tensor) -> Tensor:
        """Return exact codes [B, I]; after enough tokens, set the threshold."""
        exact_BI, smallest_B = self._exact(x_BD)
        self._smallest.append(smallest_B)
        smallest = torch.cat(self._smallest)
        if len(smallest) >= FITTED_TOKENS:
            self.threshold = float(smallest.median())
            self._smallest = []
        return exact_BI

    def _compare(self, x_BD: Tensor, code_BI: Tensor) -> None:
        left = self._check - self.compared
        x_BD, code_BI = x_BD[:left], code_BI[:left]
        ours_BI, exact_BI = code_BI > 0, self._exact(x_BD)[0] > 0
        self.compared += len(x_BD)
        self.differ += int((ours_BI != exact_BI).sum())
        self.fired += int((ours_BI | exact_BI).sum())

    def _exact(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of the named latents [B, I], and the smallest code of each row [B]."""
        codes = self.on(x_BD.device).encode(x_BD)
        code_BI = torch.stack([codes.of_latent(each) for each in self.latents], 1)
        smallest_B = torch.full_like(x_BD[:, 0], torch.inf).scatter_reduce_(
            0, codes.rows, codes.values, "amin"
        )
        return code_BI, torch.where(smallest_B.isfinite(), smallest_B, 0.0)


def watch(dictionary: Dictionary, lm: Any, latents: Sequence[int], **how: Any) -> Watched:
    """Watch named latents of a model for a `with` block; see `Watched`.

    Raises:
        ConfigError: the model is not the dictionary's, or a latent does not exist.
    """
    return Watched(dictionary, lm, latents, **how)
