"""The words and rows of attributions over prompts that a terminal shows."""

import math
from typing import TYPE_CHECKING

from sae_dist.core.text import columns
from sae_dist.interpret.attribute.view import MARK, small
from sae_dist.interpret.explaining.view import number, shown
from sae_dist.interpret.study.claims import FEWEST_PROMPTS

if TYPE_CHECKING:
    from sae_dist.interpret.attribute.many import Attributions, Mean

HEADINGS = ("latent", "prompts", "gradient x code", "removed", "interval", "p (Holm)")


def lines(a: "Attributions") -> list[str]:
    """Return the lines for a terminal: how far the numbers can be trusted, then the latents."""
    about, seen = a.about, a.latents_seen
    rows = []
    for row in range(about["shown"] or min(20, about["fired"])):
        label = seen["label"][row]
        named = f"{seen['latent'][row]} {shown(label)}" if label else str(seen["latent"][row])
        ends = small(seen["lower"][row]), small(seen["upper"][row])
        interval = "-" if seen["exact"][row] is None else " to ".join(ends)
        effects = [small(seen[key][row]) for key in ("effect", "exact")]
        cells = [named, str(seen["prompts"][row]), *effects, interval]
        rows.append(["*" if seen["beyond_controls"][row] else "", *cells, number(seen["p_holm"][row], 2)])
    found = [*verdict(a), "", *columns([["", *HEADINGS], *rows], None)]
    return [*found, MARK] if any(row[0] for row in rows) else found


def verdict(a: "Attributions") -> list[str]:
    """Return the sentences on how far the numbers can be trusted."""
    about, N = a.about, a.about["prompts"]
    hooks = about["hook"] + (f" to {about['target_hook']}" if "target_hook" in about else "")
    clean = sum(a.prompts_seen["clean"]) / N
    metrics = list(dict.fromkeys(a.prompts_seen["metric"]))
    others = len(metrics) - 1
    more = f" (other prompts: {others} other metric{'s' * (others > 1)})" if others else ""
    found = [
        f"{metrics[0]}{more}: {clean:+.3f} over {N} prompts; {about['fired']:,} latents fire",
        f"of that, latents make {_mean(a.latents)}, the error {_mean(a.error)}",
    ]
    if abs(a.error.mean) > abs(a.latents.mean):
        found.append("the error carries more than the latents: the dictionary explains little of this")
    found.append(f"on every prompt these parts add up to within {a.complete_to:.1e}")
    if a.agreement.codes:
        sign, rank = a.agreement.sign, a.agreement.rank
        words = "no sign" if math.isnan(sign) else f"{sign:.0%} of signs right"
        words += "" if math.isnan(rank) else f", rank correlation {rank:.2f}"
        found.append(f"gradient times code against {a.agreement.codes} latents removed for real: {words}")
    if a.equal.reach is None or a.random.reach is None:
        few = min(a.equal.controls, a.random.controls)
        found.append(f"{few} controls are too few to say what chance does: nothing is marked")
    else:
        found.append(
            f"95 % of latents as frequent move it by less than {number(a.equal.reach)}, of random directions "
            f"by less than {a.random.reach:.0%} of what the best of the same size would"
        )
    if N < FEWEST_PROMPTS:
        found.append(f"{N} prompts are too few for intervals that hold; give {FEWEST_PROMPTS} or more")
    return [*found, f"{about['dictionary']} of {about['model']}, {hooks}", *about["notes"]]


def _mean(found: "Mean") -> str:
    return f"{small(found.mean)} ({small(found.lower)} to {small(found.upper)})"
