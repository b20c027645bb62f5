"""Attributions of many prompts together: latents by what they do on average, with intervals over prompts.

Letters: as interpret.attribute.reading; N prompts, C latents that are shown.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.attribute.attribute import EXACT, Maker, check_exact
from sae_dist.interpret.attribute.attribution import Agreement, plain_parts
from sae_dist.interpret.attribute.certificate import Certificate
from sae_dist.interpret.attribute.controls import Bound, equally_rare, random_units
from sae_dist.interpret.attribute.metrics import Function, Metric, question
from sae_dist.interpret.attribute.reading import HALF, Change, Reading, lost, reading, wide_model
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.explaining.explain import labels_of
from sae_dist.interpret.explaining.explanation import Columns, records
from sae_dist.interpret.model import as_model
from sae_dist.interpret.statistics import Estimates, Floats, agreement, estimates, holm

Asked = tuple[Any, Metric | Function | None]
"""A text, messages or token ids, and the metric of the token after it; see `attribute`."""


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its interval of 95 %, by resampling prompts."""

    mean: float
    lower: float
    upper: float

    @classmethod
    def of(cls, found: Estimates, place: int) -> "Mean":
        """Return one of several estimates."""
        lower_C, upper_C = found.intervals()
        return cls(float(found.mean_C[place]), float(lower_C[place]), float(upper_C[place]))


@dataclass(frozen=True, eq=False)
class Attributions:
    """The latents of a dictionary by what they do to the token after some prompts.

    Attributes:
        about: dictionary, model, hooks, numbers.
        latents, error: what all codes, and what is not explained, carry of what is lost without both.
        agreement: gradient times code beside removal, of the means of the latents shown.
        equal, random: what removing latents as frequent, and random directions, does at most, on average.
        latents_seen: columns, greatest effect first; those that were removed have all.
        prompts_seen: columns, a row for each prompt.
    """

    about: dict[str, Any]
    latents: Mean
    error: Mean
    agreement: Agreement
    equal: Bound
    random: Bound
    latents_seen: Columns
    prompts_seen: Columns

    @property
    def complete_to(self) -> float:
        """The greatest distance, over prompts, of the sum of all parts from what the metric loses."""
        return max(self.prompts_seen["complete_to"])

    @property
    def json(self) -> dict[str, Any]:
        """Everything, as JSON has it: a number that is not finite is None."""
        names = ("latents", "error", "agreement", "equal", "random")
        found = {name: plain_parts(getattr(self, name)) for name in names}
        rows = {"rows": records(self.latents_seen), "prompts": records(self.prompts_seen)}
        return {"about": self.about, "complete_to": self.complete_to, **found, **rows}

    def to_json(self, indent: int | None = None) -> str:
        """Return `json` as text."""
        return json.dumps(self.json, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")

    def __str__(self) -> str:
        """Return the attributions as lines for a terminal."""
        from sae_dist.interpret.attribute.many_view import lines

        return "\n".join(lines(self))

    def __repr__(self) -> str:
        """Describe the attributions in a line."""
        prompts, fired, shown = (self.about[key] for key in ("prompts", "fired", "shown"))
        return f"Attributions({prompts} prompts, {fired:,} latents, {shown} removed)"


def attribute_many(
    dictionary: Dictionary,
    lm: Any,
    prompts: Sequence[Asked],
    *,
    exact: int = EXACT,
    seed: int = 0,
    labels: Mapping[int, str] | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Attributions:
    """Attribute metrics of the tokens after prompts to latents, each with all its codes of a prompt.

    Args:
        prompts: each with its metric; see `attribute`.
        exact: how many latents are shown and removed for real, and as many controls of each kind.
        progress: is given how many prompts are done, and how many there are, twice over.

    Raises:
        ConfigError: see `attribute`; or there are no prompts, or no latent fires on any.
        DataError: activations are not finite.
    """
    check_exact(exact)
    named = labels_of(dictionary, labels)
    if not prompts:
        raise ConfigError("there are no prompts; give at least one")
    given = as_model(lm)
    lm = wide_model(given)
    one = _First(dictionary, lm, force, seed, progress)
    for number, each in enumerate(prompts):
        one.add(number, len(prompts), each)
    if not one.count_F.any():
        raise ConfigError("no latent fires on the prompts; give other ones")
    effect_NF, fired = one.effects()
    order = np.argsort(-np.abs(effect_NF.mean(0)), kind="stable")
    shown_C = order[:exact]
    usual = one.usual(fired)
    other_C = equally_rare(usual, shown_C, seed)
    removed = _Removed(dictionary, lm, force, seed, fired[shown_C], fired[other_C])
    for number, each in enumerate(prompts):
        removed.add(each)
        progress(len(prompts) + number + 1, 2 * len(prompts))
    return _made(one, removed, (effect_NF, fired, order, shown_C), named, given.dtype in HALF, seed)


class _First:
    """The first passage over prompts: gradients, and what each prompt's parts add up to."""

    def __init__(self, d: Dictionary, lm: Any, force: bool, seed: int, progress: Callable[[int, int], None]):
        self.dictionary, self.lm, self._force, self._seed = d, lm, force, seed
        self._progress = progress
        self.count_F = np.zeros(d.num_latents, dtype=np.int64)
        self._effects: list[tuple[Any, Any]] = []
        self.columns: Columns = {key: [] for key in ("prompt", "metric", "clean", "without", "lost", "codes")}
        self.columns |= {key: [] for key in ("latents", "error", "complete_to", "nodes", "difference")}
        self.hooks: dict[str, str] = {}

    def add(self, number: int, of: int, asked: Asked) -> None:
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


class _Removed:
    """The second passage over prompts: latents, their controls, and random directions removed for real."""

    def __init__(self, d: Dictionary, lm: Any, force: bool, seed: int, shown: Any, others: Any):
        self._dictionary, self._lm, self._force, self._seed = d, lm, force, seed
        self.shown, self.others = shown, others
        self.lost_NC: list[Floats] = []
        self.equal_NM: list[Floats] = []
        self.random_NC: list[Floats] = []

    def add(self, asked: Asked) -> None:
        found, what = read(self._dictionary, self._lm, asked, self._force)
        # A latent is removed along the same random direction on every prompt.
        unit_CE = random_units(len(self.shown), found.rows_IE, self._seed)
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

    def _change(self, found: Reading, latent: int, unit_CE: Any, row: int) -> Change | None:
        """Return the change that removes all codes of a latent; None: it does not fire."""
        place_C = (found.latent_P == latent).nonzero().squeeze(1)
        if not len(place_C):
            return None
        row_CE = found.directions(place_C)
        if unit_CE is not None:
            row_CE = row_CE.norm(dim=1, keepdim=True) * unit_CE[row]
        return found.position_P[place_C], -row_CE


def read(dictionary: Dictionary, lm: Any, asked: Asked, force: bool) -> tuple[Reading, Any]:
    """Read a prompt and find the tokens of its metric; see `attribute`."""
    text, metric = asked
    found = reading(dictionary, lm, text, force)
    return found, question(lm, (found.text, tuple(found.ids_S.tolist())), metric, found.logit_V)


def _made(
    one: _First,
    removed: _Removed,
    ranked: tuple[Floats, Any, Any, Any],
    labels: Mapping[int, str],
    copied: bool,
    seed: int,
) -> Attributions:
    effect_NF, fired, order, shown_C = ranked
    predicted, exact = estimates(effect_NF[:, shown_C], seed), estimates(np.array(removed.lost_NC), seed)
    equal = Bound.of(np.array(removed.equal_NM).mean(0))
    random = Bound.of(np.array(removed.random_NC).mean(0))
    lower_C, upper_C = predicted.intervals()
    low_C, high_C = exact.intervals()
    # Those that were not removed are part of the family: the choice looked at all that fired.
    adjusted_C = holm(exact.p_C, len(fired)) if len(shown_C) else np.zeros(0)
    reach = None if equal.reach is None or random.reach is None else max(equal.reach, random.reach)
    rest = [None] * (len(fired) - len(shown_C))
    columns: Columns = {
        "latent": fired[order].tolist(),
        "label": [labels.get(int(each)) for each in fired[order]],
        "prompts": one.count_F[fired[order]].tolist(),
        "effect": effect_NF[:, order].mean(0).tolist(),
        "effect_lower": [*lower_C.tolist(), *rest],
        "effect_upper": [*upper_C.tolist(), *rest],
        "exact": [*exact.mean_C.tolist(), *rest],
        "lower": [*low_C.tolist(), *rest],
        "upper": [*high_C.tolist(), *rest],
        "p_holm": [*adjusted_C.tolist(), *rest],
        "beyond_controls": [*(None if reach is None else bool(abs(e) > reach) for e in exact.mean_C), *rest],
    }
    parts = estimates(np.array([one.columns["latents"], one.columns["error"]]).T, seed)
    d, notes = one.dictionary, []
    if copied:
        notes.append(f"{one.lm.name} was given in 16 bits; a copy of it in float32 computed this")
    about = {
        "dictionary": repr(d),
        "folder": str(d.place.folder),
        "model": one.lm.name,
        **one.hooks,
        "prompts": len(one.columns["prompt"]),
        "fired": len(fired),
        "shown": len(shown_C),
        "seed": seed,
        "notes": notes,
    }
    found = agreement(predicted.mean_C, exact.mean_C)
    return Attributions(
        about,
        Mean.of(parts, 0),
        Mean.of(parts, 1),
        Agreement(len(shown_C), *found),
        equal,
        random,
        columns,
        one.columns,
    )
