"""The two passages over prompts: what gradients say of each latent, and what removing it really does.

Letters: as core.types; N prompts, C latents that are shown, I latents that fire, M controls, q positions.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from sae_dist.interpret.attribute.attribute import Maker
from sae_dist.interpret.attribute.certificate import Certificate
from sae_dist.interpret.attribute.controls import random_units
from sae_dist.interpret.attribute.metrics import Function, Metric, Question, question
from sae_dist.interpret.attribute.reading import Change, Reading, gradients, lost, reading
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.explaining.explanation import Columns
from sae_dist.interpret.statistics import Floats

Asked = tuple[Any, Metric | Function | None]
"""A text, messages or token ids, and the metric of the token after it; see `attribute`."""


class First:
    """The first passage over prompts: gradients, and what each prompt's parts add up to.

    Attributes:
        count_F: on how many prompts each latent fires.
        columns: a row for each prompt.
    """

    def __init__(self, d: Dictionary, lm: Any, force: bool, seed: int, progress: Callable[[int, int], None]):
        self.dictionary, self.lm, self._force, self._seed = d, lm, force, seed
        self._progress = progress
        self.count_F = np.zeros(d.num_latents, dtype=np.int64)
        self._effects: list[tuple[Any, Any]] = []
        self.columns: Columns = {key: [] for key in ("prompt", "metric", "clean", "without", "lost", "codes")}
        self.columns |= {key: [] for key in ("latents", "error", "complete_to", "nodes", "difference")}
        self.hooks: dict[str, str] = {}

    def add(self, number: int, of: int, asked: Asked) -> None:
        """Take in a prompt; see `read`."""
        found, what = read(self.dictionary, self.lm, asked, self._force)
        made = Maker(found, what, self._seed, {}, False)
        latent_I, place_P = found.latent_P.cpu().unique(return_inverse=True)
        effect_I = torch.zeros(len(latent_I), dtype=torch.float64).index_add(0, place_P, made.effect_P.cpu())
        self._effects.append((latent_I.numpy(), effect_I.numpy()))
        self.count_F[latent_I.numpy()] += 1
        self.hooks = found.session.hooks
        c: Certificate = made.certificate
        row = {"prompt": found.text or str(found.ids_S.tolist()), "metric": what.words, **asdict(c)}
        row |= {"lost": c.lost, "codes": len(found.value_P), "difference": made.differences.median}
        for key, column in self.columns.items():
            column.append(row[key])
        self._progress(number + 1, 2 * of)

    def effects(self) -> tuple[Floats, Any]:
        """Return the effect of each latent that fired, 0 where it is silent [N, I], and their numbers [I]."""
        fired = np.flatnonzero(self.count_F)
        effect_NI = np.zeros((len(self._effects), len(fired)))
        for row, (latents, effects) in enumerate(self._effects):
            effect_NI[row, np.searchsorted(fired, latents)] = effects
        return effect_NI, fired

    def usual(self, fired: Any) -> Floats:
        """Return how often latents fire: their rates, or on how many prompts."""
        rate_F = self.dictionary.rate
        if rate_F is None or not bool((rate_F > 0).any()):
            found: Floats = self.count_F[fired].astype(np.float64)
            return found
        rate: Floats = rate_F.double().cpu().numpy()
        return np.maximum(rate[fired], rate[rate > 0].min())


class Removed:
    """The second passage over prompts: latents, their controls, and random directions removed for real.

    Attributes:
        lost_NC, equal_NM, random_NC: what the metric of each prompt loses; 0 where a latent is silent.
    """

    def __init__(self, d: Dictionary, lm: Any, force: bool, seed: int, shown: Any, others: Any):
        self._dictionary, self._lm, self._force, self._seed = d, lm, force, seed
        self.shown, self.others = shown, others
        self.lost_NC: list[Floats] = []
        self.equal_NM: list[Floats] = []
        self.random_NC: list[Floats] = []
        self._steep_CE: Any = 0.0

    def add(self, asked: Asked) -> None:
        """Remove each latent from a prompt; see `read`."""
        found, what = read(self._dictionary, self._lm, asked, self._force)
        # A latent is removed along the same random direction on every prompt.
        unit_CE = random_units(len(self.shown), found.rows_IE, self._seed)
        _, grad_1SE = gradients(found, what, torch.zeros_like(found.codes_SE)[None])
        steep = [self._steep(found, int(each), grad_1SE[0].double()) for each in self.shown]
        self._steep_CE = self._steep_CE + torch.stack(steep) if steep else self._steep_CE
        for kept, latents, units in (
            (self.lost_NC, self.shown, None),
            (self.equal_NM, self.others, None),
            (self.random_NC, self.shown, unit_CE),
        ):
            own = [self._change(found, int(each), units, row) for row, each in enumerate(latents)]
            fire = [row for row, each in enumerate(own) if each is not None]
            value = np.zeros(len(own))
            value[fire] = lost(found, what, [each for each in own if each is not None]).cpu().numpy()
            kept.append(value)

    @property
    def steepest_C(self) -> Floats:
        """The most that any one direction in place of each latent would do on average, to first order [C]."""
        steepest: Floats = self._steep_CE.norm(dim=1).cpu().numpy() / len(self.lost_NC)
        return steepest

    def _steep(self, found: Reading, latent: int, grad_SE: torch.Tensor) -> torch.Tensor:
        """Return the gradient, times the latent's size at each position [E]."""
        place_C = (found.latent_P == latent).nonzero().squeeze(1)
        size_C = found.directions(place_C).double().norm(dim=1)
        return (size_C[:, None] * grad_SE[found.position_P[place_C]]).sum(0)

    def _change(self, found: Reading, latent: int, unit_CE: Any, row: int) -> Change | None:
        """Return the change that removes all codes of a latent; None: it does not fire."""
        place_C = (found.latent_P == latent).nonzero().squeeze(1)
        if not len(place_C):
            return None
        row_CE = found.directions(place_C)
        if unit_CE is not None:
            row_CE = row_CE.norm(dim=1, keepdim=True) * unit_CE[row]
        return found.position_P[place_C], -row_CE


def read(dictionary: Dictionary, lm: Any, asked: Asked, force: bool) -> tuple[Reading, Question]:
    """Read a prompt and find the tokens of its metric; see `attribute`."""
    text, metric = asked
    found = reading(dictionary, lm, text, force)
    return found, question(lm, (found.text, tuple(found.ids_S.tolist())), metric, found.logit_V)
