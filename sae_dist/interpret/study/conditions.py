"""The conditions of a study: what is steered and by how much, and the controls beside each dose.

Letters: as core.types; I named latents, M draws of a control.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.export.statistics import CodeStatistics
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.interventions import Intervention
from sae_dist.interpret.study.asked import DOSED, Arm

STEERED = "steered"
RANDOM, EQUAL, OPPOSED, SHUFFLED = "random direction", "equal latent", "wrong sign", "shuffled dictionary"
CONTROLS = {
    RANDOM: "the same change of the code, along a random direction of the decoder row's norm",
    EQUAL: "another live latent that fires about as often, at the same multiple of its own codes",
    OPPOSED: "the same change, of the other sign",
    SHUFFLED: "the same change of the code, along another latent's decoder row of the same norm",
}
NEAREST = 4
"""Latents of equal rate are drawn from so many times as many nearest ones."""


@dataclass(frozen=True)
class Hypothesis:
    """A latent at a dose: the unit of which an effect is claimed.

    Attributes:
        arm: its number among those asked for.
        times: the dose in 99.9th percentiles of the latent's codes; None: the intervention has no dose.
        value: the dose as a code.
        asked: it is the dose that was written behind the latent.
    """

    arm: int
    how: str
    latent: int
    times: float | None
    value: float | None
    asked: bool = False

    def __str__(self) -> str:
        """Return latent, intervention and dose in words."""
        dose = "" if self.times is None else f" at {self.times:g}x"
        return f"{self.how} {self.latent}{dose}"


@dataclass(frozen=True)
class Condition:
    """One way of steering, compared with the model as it is.

    Attributes:
        hypothesis: the number of the one that it belongs to.
        kind: STEERED, or a control.
        draw: the number of the control's draw.
        latent: whose code is changed.
        direction_E: what activations are moved along; None: the latent's decoder row.
        sign: -1 turns the change round.
    """

    hypothesis: int
    kind: str
    draw: int
    latent: int
    intervention: Intervention
    direction_E: Tensor | None = None
    sign: float = 1.0


def hypotheses(arms: Sequence[Arm], doses: Sequence[float], statistics: CodeStatistics) -> list[Hypothesis]:
    """Return every latent at every dose: the ladder, and the dose written behind the latent.

    Raises:
        ConfigError: a latent never fired.
    """
    found = []
    for number, arm in enumerate(arms):
        unit = float(statistics.p999_F[arm.latent])
        if unit <= 0 or float(statistics.rate_F[arm.latent]) <= 0:
            raise ConfigError(
                f"latent {arm.latent} never fired on {statistics.rows:,} rows, so it has no usual code to "
                "count doses in, and no equal to be compared with; choose one that fires"
            )
        if arm.how not in DOSED:
            found.append(Hypothesis(number, arm.how, arm.latent, None, None))
            continue
        own = None if arm.value is None else arm.value if arm.times else arm.value / unit
        for times in sorted({*doses, *([] if own is None else [own])}):
            if arm.how == "add" and times == 0:
                continue  # adding nothing is the model as it is
            found.append(Hypothesis(number, arm.how, arm.latent, times, times * unit, times == own))
    if not found:
        raise ConfigError("--doses 0 of --add changes nothing; give another dose")
    return found


def conditions(
    dictionary: Dictionary,
    found: Sequence[Hypothesis],
    statistics: CodeStatistics,
    *,
    draws: int,
    seed: int,
) -> list[Condition]:
    """Return the conditions of each hypothesis: steered, and its controls, of which most are drawn at random.

    A draw is the same latent or direction at all doses.

    Raises:
        ConfigError: too few other latents fire.
    """
    latents = sorted({each.latent for each in found})
    drawn = {each: _Drawn(dictionary, each, latents, statistics, draws, seed) for each in latents}
    made = []
    for number, each in enumerate(found):
        own = drawn[each.latent]
        what = intervention(each.how, each.value, each.latent, statistics)
        made.append(Condition(number, STEERED, 0, each.latent, what))
        made.append(Condition(number, OPPOSED, 0, each.latent, what, sign=-1.0))
        for draw in range(draws):
            made.append(Condition(number, RANDOM, draw, each.latent, what, own.random_ME[draw]))
            made.append(Condition(number, SHUFFLED, draw, each.latent, what, own.shuffled_ME[draw]))
            other = own.equal[draw]
            unit = float(statistics.p999_F[other])
            value = None if each.times is None else each.times * unit
            made.append(
                Condition(number, EQUAL, draw, other, intervention(each.how, value, other, statistics))
            )
    return made


def intervention(how: str, value: float | None, latent: int, statistics: CodeStatistics) -> Intervention:
    """Return an intervention in units of codes."""
    return Intervention(how.replace("-", "_"), value).resolved(latent, statistics)


class _Drawn:
    """The random controls of a latent.

    Attributes:
        equal: other latents that fire about as often.
        random_ME, shuffled_ME: directions with the norm of the latent's decoder row.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        latent: int,
        steered: Sequence[int],
        statistics: CodeStatistics,
        draws: int,
        seed: int,
    ):
        draw = np.random.default_rng([seed, latent])
        row_E = dictionary.some([latent]).W_dec_IE[0].float().cpu()
        norm = row_E.norm()
        self.equal = equals(statistics, latent, steered, draws, draw)
        live = (statistics.rate_F > 0).cpu().numpy()
        live[list(steered)] = False
        others = draw.choice(np.flatnonzero(live), draws, replace=False)
        rows_ME = dictionary.some([int(each) for each in others]).W_dec_IE.float().cpu()
        self.shuffled_ME = torch.nn.functional.normalize(rows_ME, dim=1) * norm
        random_ME = torch.from_numpy(draw.standard_normal((draws, len(row_E)))).float()
        self.random_ME = torch.nn.functional.normalize(random_ME, dim=1) * norm


def equals(
    statistics: CodeStatistics,
    latent: int,
    steered: Sequence[int],
    draws: int,
    draw: np.random.Generator,
) -> list[int]:
    """Draw live latents from those whose rates are nearest to a latent's.

    Raises:
        ConfigError: fewer than `draws` others fire.
    """
    rate_F = statistics.rate_F.cpu().double().numpy()
    live = (rate_F > 0) & (statistics.p999_F.cpu().numpy() > 0)
    live[list(steered)] = False
    others = np.flatnonzero(live)
    if len(others) < draws:
        raise ConfigError(
            f"{len(others)} other latents fire, {draws} are drawn as controls; use --controls 2"
        )
    apart = np.abs(np.log(rate_F[others] / rate_F[latent]))
    nearest = others[np.argsort(apart, kind="stable")[: NEAREST * draws]]
    return [int(each) for each in draw.choice(nearest, draws, replace=False)]


def equally_often(
    count_F: NDArray[np.float64], latent: int, draws: int, draw: np.random.Generator
) -> list[int]:
    """Draw latents that fire on about as many of the prompts."""
    others = np.flatnonzero(count_F)
    others = others[others != latent]
    apart = np.abs(np.log(count_F[others] / count_F[latent]))
    # In the order of their numbers, neighbours would be chosen where many fire as often.
    mixed = draw.permutation(len(others))
    nearest = others[mixed[np.argsort(apart[mixed], kind="stable")[: NEAREST * draws]]]
    return [int(each) for each in draw.choice(nearest, min(draws, len(nearest)), replace=False)]
