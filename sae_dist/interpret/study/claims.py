"""Claims of a latent at a dose: an effect beyond chance, and beyond what every control does.

Letters: as core.types; N prompts, C conditions, M draws of a control.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_dist.interpret.statistics import (
    LEVEL,
    RESAMPLES,
    Estimates,
    Floats,
    estimates,
    holm,
    holm_levels,
    reach_of_draws,
)
from sae_dist.interpret.study.conditions import CONTROLS, STEERED, Condition, Hypothesis

LEAST = 0.001
FEWEST_PROMPTS = 16
"""With fewer prompts intervals of skewed effects are too short: nothing is claimed."""


@dataclass(frozen=True)
class Judgement:
    """A hypothesis with its effect, its controls, and what is claimed.

    Attributes:
        mean, lower, upper: the mean effect over prompts, and its interval at the level LEVEL.
        claimed_lower, claimed_upper: the interval at the level at which Holm's procedure judges it.
        p, adjusted: the probability of such an effect by chance, and the same by Holm over all hypotheses.
        controls: by control, the interval of its draws.
        not_passed: the controls whose intervals the effect's does not pass in its direction.
        claimed: there is an effect.
        words: what is claimed, or why nothing is.
    """

    hypothesis: Hypothesis
    mean: float
    lower: float
    upper: float
    claimed_lower: float
    claimed_upper: float
    p: float
    adjusted: float
    controls: Mapping[str, tuple[float, float]]
    not_passed: tuple[str, ...]
    claimed: bool
    words: str


def part(of: Estimates, at: Sequence[int]) -> Estimates:
    """Return the estimates of some conditions."""
    at = list(at)
    return Estimates(of.mean_C[at], of.error_C[at], of.size_RC[:, at], of.num_prompts)


def judged(
    found: Sequence[Hypothesis],
    conditions: Sequence[Condition],
    effect_NC: Floats,
    *,
    seed: int,
    what: str,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> list[Judgement]:
    """Return what is claimed of every hypothesis, by the effects of all conditions.

    Args:
        effect_NC: of the measure that claims are made of.
        what: the measure in words, such as "the target's log-probability".
    """
    all_of = estimates(effect_NC, seed, resamples)
    places: dict[tuple[int, str], list[int]] = {}
    for number, condition in enumerate(conditions):
        places.setdefault((condition.hypothesis, condition.kind), []).append(number)
    own = part(all_of, [places[number, STEERED][0] for number in range(len(found))])
    adjusted, (lower, upper) = holm(own.p_C), own.intervals(level)
    holm_lower, holm_upper = own.intervals(holm_levels(own.p_C, level))
    judgements = []
    for number, each in enumerate(found):
        reaches = {
            kind: reach_of_draws(part(all_of, places[number, kind]), level)
            for kind in CONTROLS
            if (number, kind) in places
        }
        interval = float(lower[number]), float(upper[number])
        missed = not_passed(interval, reaches)
        claimed, words = claim(
            str(each),
            what,
            float(own.mean_C[number]),
            interval,
            adjusted=float(adjusted[number]),
            missed=missed,
            num_prompts=len(effect_NC),
            level=level,
        )
        judgements.append(
            Judgement(
                each,
                float(own.mean_C[number]),
                *interval,
                float(holm_lower[number]),
                float(holm_upper[number]),
                float(own.p_C[number]),
                float(adjusted[number]),
                reaches,
                missed,
                claimed,
                words,
            )
        )
    return judgements


def not_passed(interval: tuple[float, float], controls: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Return the controls whose intervals an effect's does not pass.

    An effect above 0 passes a control if its whole interval is above the control's; below 0, if below.
    """
    lower, upper = interval
    if lower <= 0 <= upper:
        return tuple(controls)
    return tuple(
        name for name, (least, most) in controls.items() if not (lower > most if lower > 0 else upper < least)
    )


def claim(
    name: str,
    what: str,
    mean: float,
    interval: tuple[float, float],
    *,
    adjusted: float,
    missed: Sequence[str],
    num_prompts: int,
    level: float = LEVEL,
) -> tuple[bool, str]:
    """Return whether an effect is claimed, and that or its reason in words.

    Args:
        adjusted: the p-value by Holm over all hypotheses.
        missed: the controls that were not passed.
    """
    lower, upper = interval
    measured = f"{mean:+.3g} ({lower:+.3g} to {upper:+.3g})"
    if not np.isfinite(upper):
        measured = f"{mean:+.3g} (too few prompts differ for an interval)"
    if num_prompts < FEWEST_PROMPTS:
        return False, (
            f"Nothing is claimed of {name}: {num_prompts} prompts are too few for an interval, "
            f"{FEWEST_PROMPTS} are needed."
        )
    if adjusted > level or lower <= 0 <= upper:
        return False, (
            f"Nothing is claimed of {name}: its effect on {what}, {measured}, may be chance (p "
            f"{probability(adjusted)} by Holm over all latents and doses)."
        )
    if missed:
        return False, (
            f"Nothing is claimed of {name}: its effect on {what}, {measured}, is not chance, but not more "
            f"than that of its control{'s' if len(missed) > 1 else ''}: {', '.join(missed)}."
        )
    verb = "raises" if mean > 0 else "lowers"
    return True, (
        f"{name[:1].upper()}{name[1:]} {verb} {what} by {abs(mean):.3g} ({lower:+.3g} to {upper:+.3g}), more "
        f"than chance (p {probability(adjusted)} by Holm) and more than all four controls."
    )


def probability(p: float) -> str:
    """Return a p-value as text with its sign; far out in a tail its size means nothing."""
    return f"= {p:.2g}" if p >= LEAST else f"< {LEAST:g}"


def false_alarms(
    effect_NC: Floats, num_doses: int, draws: int, *, rounds: int, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return how often the procedure claims an effect where the latent is one more draw of a control.

    Args:
        effect_NC: of C = latents x doses x 2 conditions, the last axis the sign: directions of no meaning,
            of which one is taken as the latent, and the others as its controls.

    Returns:
        The share of rounds with a claim at any dose; and the same if controls were not looked at.
    """
    N = len(effect_NC)
    by_NCSD = effect_NC.reshape(N, -1, num_doses, 2)
    draw = np.random.default_rng(seed)
    kinds = [kind for kind in CONTROLS if kind != "wrong sign"]
    alarms = unguarded = 0
    for _round in range(rounds):
        chosen = draw.choice(by_NCSD.shape[1], 1 + len(kinds) * draws, replace=False)
        rows = draw.integers(0, N, N)
        columns, made = [], []
        for dose in range(num_doses):
            steered, *others = chosen
            labelled = [(STEERED, steered, 0), ("wrong sign", steered, 1)]
            labelled += [(kinds[place // draws], each, 0) for place, each in enumerate(others)]
            for kind, which, sign in labelled:
                columns.append(by_NCSD[rows, which, dose, sign])
                made.append(_placeholder(dose, kind))
        hypotheses = [Hypothesis(0, "add", 0, float(dose), float(dose)) for dose in range(num_doses)]
        found = judged(hypotheses, made, np.stack(columns, 1), seed=seed, what="null", resamples=resamples)
        alarms += any(each.claimed for each in found)
        unguarded += any(each.adjusted <= LEVEL for each in found)
    return alarms / rounds, unguarded / rounds


def _placeholder(hypothesis: int, kind: str) -> Condition:
    from sae_dist.interpret.interventions import Intervention

    return Condition(hypothesis, kind, 0, 0, Intervention("add", 0.0))
