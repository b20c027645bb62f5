"""Attributions of many prompts together: latents by what they do on average, with intervals over prompts.

Letters: as core.types; N prompts, C latents that are shown, M controls.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.attribute.attribute import EXACT, check_exact
from sae_dist.interpret.attribute.attribution import Agreement, plain_parts
from sae_dist.interpret.attribute.controls import Bound, beyond, equally_rare, reaches, relative
from sae_dist.interpret.attribute.many_passes import Asked, First, Removed
from sae_dist.interpret.attribute.reading import HALF, wide_model
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.explaining.explain import labels_of
from sae_dist.interpret.explaining.explanation import Columns, records
from sae_dist.interpret.model import as_model
from sae_dist.interpret.statistics import Estimates, Floats, agreement, estimates, holm


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
    names: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Attributions:
    """Rank latents by what they do to metrics of the tokens after prompts, each with all its codes of one.

    Args:
        prompts: each with its metric; see `attribute`.
        exact: how many latents are shown and removed for real, and as many controls of each kind.
        names: of the prompts, for messages; None: their numbers.
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
    one = First(dictionary, lm, force, seed, progress)
    for number, each in enumerate(prompts):
        with _named(names[number] if names is not None else f"prompt {number + 1}"):
            one.add(number, len(prompts), each)
    if not one.count_F.any():
        raise ConfigError("no latent fires on the prompts; give other ones")
    effect_NF, fired = one.effects()
    order = np.argsort(-np.abs(effect_NF.mean(0)), kind="stable")
    shown_C = order[:exact]
    usual = one.usual(fired)
    other_C = equally_rare(usual, shown_C, seed)
    removed = Removed(dictionary, lm, force, seed, fired[shown_C], fired[other_C])
    for number, each in enumerate(prompts):
        removed.add(each)
        progress(len(prompts) + number + 1, 2 * len(prompts))
    return _made(one, removed, (effect_NF, fired, order, shown_C), named, given.dtype in HALF, seed)


@contextmanager
def _named(prompt: str) -> Iterator[None]:
    """Say in an error which prompt it is about.

    Raises:
        ConfigError: one was raised within.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prompt}: {error}") from error


def _made(
    one: First,
    removed: Removed,
    ranked: tuple[Floats, Any, Any, Any],
    labels: Mapping[int, str],
    copied: bool,
    seed: int,
) -> Attributions:
    effect_NF, fired, order, shown_C = ranked
    predicted, exact = estimates(effect_NF[:, shown_C], seed), estimates(np.array(removed.lost_NC), seed)
    equal = Bound.of(np.array(removed.equal_NM).mean(0))
    steepest_C = removed.steepest_C if len(shown_C) else np.zeros(0)
    random = Bound.of(relative(np.array(removed.random_NC).mean(0), steepest_C))
    lower_C, upper_C = predicted.intervals()
    low_C, high_C = exact.intervals()
    # Those that were not removed are part of the family: the choice looked at all that fired.
    adjusted_C = holm(exact.p_C, len(fired)) if len(shown_C) else np.zeros(0)
    reach_C = reaches(equal, random, steepest_C)
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
        "controls": [*reach_C, *rest],
        "beyond_controls": [*beyond(exact.mean_C, reach_C), *rest],
    }
    parts = estimates(np.array([one.columns["latents"], one.columns["error"]]).T, seed)
    found = agreement(predicted.mean_C, exact.mean_C)
    return Attributions(
        _about(one, len(fired), len(shown_C), copied, seed),
        Mean.of(parts, 0),
        Mean.of(parts, 1),
        Agreement(len(shown_C), *found),
        equal,
        random,
        columns,
        one.columns,
    )


def _about(one: First, fired: int, shown: int, copied: bool, seed: int) -> dict[str, Any]:
    d, notes = one.dictionary, []
    if copied:
        notes.append(f"{one.lm.name} was given in 16 bits; a copy of it in float32 computed this")
    return {
        "dictionary": repr(d),
        "folder": str(d.place.folder),
        "model": one.lm.name,
        **one.hooks,
        "prompts": len(one.columns["prompt"]),
        "fired": fired,
        "shown": shown,
        "seed": seed,
        "notes": notes,
    }
