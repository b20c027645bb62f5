"""The verdict on a graph, from what was measured: what must hold, and that in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_dist.graph.check.agree import FEWEST, Agreement, plain
from sae_dist.graph.check.compared import Beats, Told
from sae_dist.graph.check.measured import Cut, Measured
from sae_dist.graph.check.seeds import Seeds
from sae_dist.graph.check.variants import Stability
from sae_dist.graph.check.verdict import Level, Table, Verdict

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph

MOST_UNEXPLAINED = 0.5
"""The share of errors from which a graph explains little."""
HELD = "With attention patterns and norms held, as the graph has them"
SIZES = 0.5, 2.0
"""The slopes, measured over predicted, between which sizes count as right."""


def judged(
    graph: "Graph",
    found: Measured,
    variants: Sequence[Stability] = (),
    others: Seeds | None = None,
    *,
    seed: int = 0,
    made: bool = True,
) -> Verdict:
    """Return the verdict.

    It explains little if errors carry more than half, if signs or ranks of the nodes' effects are not right
    beyond chance, or if latents of equal size do as much; in part if edges or paths are not as it says.

    Args:
        made: the variants were made, and not given.
    """
    equal = Beats.of([(each.cut, each.control_cut) for each in found.cuts if each.control_cut is not None])
    random = Beats.of([(each.cut, each.random_cut) for each in found.cuts])
    told = Told.of(found.unsaid_M, found.moved_M, seed)
    against, short = _against(found, equal), _short_of(found, told)
    level: Level = "little" if against else "partly" if short else "explains"
    lines = [_headline(level, found, against or short), *_line(found.held, HELD)]
    lines += [*_controls(equal, random), *_inside(found, told)]
    lines += [_errors(graph, found), *_stable(variants, made), *_seeds(others)]
    from sae_dist.graph.check import tables

    shown: list[Table] = tables.all_of(graph, found, variants, others)
    numbers = _numbers(found, equal, random, told, variants, others)
    return Verdict(level=level, lines=tuple(lines), tables=tuple(shown), numbers=numbers)


def _against(found: Measured, equal: Beats) -> list[str]:
    """Return why a graph explains little; nothing if it does not."""
    reasons = []
    if found.unfollowed > MOST_UNEXPLAINED:
        reasons.append(
            f"latents that were not followed (--nodes) carry {percent(found.unfollowed)} of the influence"
        )
    elif found.error_share > MOST_UNEXPLAINED * (1 - found.unfollowed):
        reasons.append(f"error nodes carry {percent(found.error_share)} of the influence, more than half")
    if found.missing > MOST_UNEXPLAINED:
        reasons.append(
            f"the dictionaries miss {percent(found.missing)} of what their layers add at this prompt, more "
            "than half"
        )
    if len(found.cuts) < FEWEST:
        reasons.append(
            f"{len(found.cuts)} latents have an effect in it, too few to check ({FEWEST} are needed)"
        )
        return reasons
    if not found.cut.signs_agree:
        reasons.append("the signs of effects are not right beyond chance")
    if not found.further.ranks_agree:
        reasons.append("which node does more than another is not predicted beyond chance")
    if not equal.passes:
        reasons.append("its nodes do no more than other latents of equal size")
    return reasons


def _short_of(found: Measured, told: Told) -> list[str]:
    """Return why a graph explains a part only; nothing if it explains all that was looked at."""
    reasons = []
    for agree, what in ((found.cut, "nodes that are cut"), (found.doubled, "nodes that are doubled")):
        if not SIZES[0] <= agree.slope <= SIZES[1]:
            reasons.append(f"{what} have {agree.slope:.2f} times the predicted effect")
    if found.edges.num and not (found.edges.signs_agree and found.edges.ranks_agree):
        reasons.append("single edges are not as predicted")
    if found.by_paths.num >= FEWEST and not found.by_paths.signs_agree:
        reasons.append("single paths are not as predicted")
    if told.num >= FEWEST and not told.interval[0] > 0:
        reasons.append("what later layers do when nodes are cut is not what their dictionaries say")
    return reasons


def _headline(level: Level, found: Measured, reasons: Sequence[str]) -> str:
    begin = {
        "explains": "The model does what this graph says.",
        "partly": f"The model does a part of what this graph says: {'; '.join(reasons)}.",
        "little": f"This graph explains little: {'; '.join(reasons)}.",
    }[level]
    if not found.cuts:
        return begin
    low, high = found.cut.sign_interval
    words = (
        f"Of {len(found.cuts)} nodes cut, {found.cut.same_sign} moved {found.metric} to the predicted side "
        f"(95 % interval {percent(low)} to {percent(high)}), by {found.cut.slope:.2f} times the predicted "
        "size"
    )
    if np.isfinite(found.further.rank):
        low, high = found.further.rank_interval
        more = found.further.num - len(found.cuts)
        words += f"; rank correlation {found.further.rank:.2f} ({low:.2f} to {high:.2f})"
        words += f", with {more} lesser nodes" if more else ""
    return f"{begin} {words}."


def _controls(equal: Beats, random: Beats) -> list[str]:
    found = []
    for each, name in ((equal, "another active latent of equal size"), (random, "a random direction")):
        if each.num:
            low, high = each.interval
            found.append(
                f"Control: {each.larger} of {each.num} nodes do more than {name} ({percent(low)} to "
                f"{percent(high)}); median sizes {each.own:.3g} and {each.control:.3g}."
            )
    return found


def _inside(found: Measured, told: Told) -> list[str]:
    lines = []
    for agree, what in (
        (found.doubled, "Doubled in place of cut, where the opposite is predicted"),
        (found.spread, "Effects on later latents"),
        (found.edges, "Single edges, all other outputs held"),
        (found.by_paths, "Single paths"),
    ):
        lines += _line(agree, what)
    if told.num:
        low, high = told.interval
        between = f" ({percent(low)} to {percent(high)})" if np.isfinite(low) else ""
        lines.append(
            f"Where a node is cut later layers change, and their dictionaries tell {percent(told.share)} of "
            f"that{between}; the graph takes the rest for fixed errors."
        )
    return lines


def _line(agree: Agreement, what: str) -> list[str]:
    """Return how well effects agree, in a line; none where there are no effects."""
    if not agree.num:
        return []
    rank = f", rank correlation {agree.rank:.2f}" if np.isfinite(agree.rank) else ""
    signs = f"{agree.same_sign} of {agree.num} have the predicted sign"
    return [f"{what}: {signs}{rank}; {agree.slope:.2f} times the predicted size."]


def _errors(graph: "Graph", found: Measured) -> str:
    still = "is still the likeliest" if found.same_without else "is no longer the likeliest"
    without = [each.target for each in graph.layers if each.hook is None]
    more = f" (all of {', '.join(without)}, without a transcoder, counts as such)" if without else ""
    return (
        f"Error nodes carry {percent(found.error_share)} of the influence{more}; the dictionaries miss "
        f"{percent(found.missing)} of what their layers add at this prompt. With the dictionaries alone in "
        f"place of their layers, the model's next token {still}: probability {found.likely_without:.3f}, and "
        f"the model's own is {found.likely:.3f}."
    )


def _stable(variants: Sequence[Stability], made: bool) -> list[str]:
    found = []
    for each in variants:
        agree = each.agreement
        name = each.variant.name if made else f"prompt {each.variant.name!r}"
        token = "the same next token" if each.says else "another next token"
        found.append(
            f"With {name}: {token}; {each.fire} of {each.num} latents fire, of which {agree.same_sign} of "
            f"{agree.num} act to the same side"
            + (f", rank correlation {agree.rank:.2f}." if np.isfinite(agree.rank) else ".")
        )
    return found


def _seeds(others: Seeds | None) -> list[str]:
    if others is None:
        return []
    agree, share = others.agreement, percent(others.share)
    return [
        f"In {others.name}: {others.found} of {others.num} latents are found again (of random directions "
        f"{others.chance}), {others.fire} fire at the same place, with {share} of the influence; "
        f"{agree.same_sign} of {agree.num} act to the same side."
    ]


def _numbers(
    found: Measured,
    equal: Beats,
    random: Beats,
    told: Told,
    variants: Sequence[Stability],
    others: Seeds | None,
) -> dict[str, Any]:
    agreements = ("cut", "further", "held", "doubled", "spread", "edges", "by_paths")
    alone = ("metric", "error_share", "unfollowed", "missing", "likely", "likely_without", "same_without")
    numbers: dict[str, Any] = {name: getattr(found, name) for name in alone}
    numbers |= {name: getattr(found, name).to_json() for name in agreements}
    numbers |= {"equal_latents": equal.to_json(), "random_directions": random.to_json()}
    numbers |= {"told": {"share": told.share, "interval": list(told.interval), "num": told.num}}
    numbers |= {"nodes": [_cut_numbers(each) for each in found.cuts]}
    numbers |= {"variants": [each.to_json() for each in variants]}
    numbers |= {"other_set": None if others is None else others.to_json()}
    checked: dict[str, Any] = plain(numbers)
    return checked


def _cut_numbers(each: Cut) -> dict[str, Any]:
    control = None if each.control is None else list(each.control.key)
    return {
        "layer": each.firing.layer,
        "position": each.firing.position,
        "latent": each.firing.latent,
        "predicted": each.predicted,
        "cut": each.cut,
        "doubled": each.doubled,
        "control": control,
        "control_cut": each.control_cut,
        "random_cut": each.random_cut,
    }


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.0f} %"
