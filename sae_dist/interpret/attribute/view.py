"""The words and rows of an attribution that a terminal and a notebook show, without markup."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_dist.core.text import columns
from sae_dist.interpret.explaining.view import AROUND, number, shown

if TYPE_CHECKING:
    from sae_dist.interpret.attribute.attribution import Agreement, Attribution

HEADINGS = ("position", "latent", "code", "rate", "gradient x code", "removed", "controls", "along")
"""The columns of `CodeView.cells`; a label follows the latent's number."""
FOOT = (
    "gradient x code: what the metric loses without the code, to first order; removed: what it loses; "
    "controls: what 95 % of them do less than; along: the code's part on the way to no codes and no error"
)
MARK = "* beyond what 95 % of controls do"


@dataclass(frozen=True)
class CodeView:
    """A code as it is shown: its numbers in words, and the tokens around its own."""

    cells: list[str]
    marked: bool
    before: str
    token: str
    after: str


@dataclass(frozen=True)
class TokenView:
    """A token as it is shown, with what its codes and its error do, and everything about it in words."""

    shown: str
    flag: str
    effect: float
    error: float
    words: str


def verdict(a: "Attribution") -> list[str]:
    """Return the sentences on how far the numbers can be trusted, the plainest first."""
    about, c = a.about, a.certificate
    found = [
        f"{about['metric']}: {signed(c.clean)}, after {about['tokens']} tokens; {about['codes']:,} codes of "
        f"{about['latents']:,} latents",
        f"codes and error make {signed(c.lost)} of that, which is {signed(c.without)} without them: latents "
        f"{signed(c.latents)}, the error {signed(c.error)}",
    ]
    if c.error_leads:
        found.append("the error carries more than the latents: the dictionary explains little of this")
    if c.complete:
        found.append(f"these parts add up to within {c.complete_to:.1e} ({c.nodes} Gauss-Legendre nodes)")
    else:
        found.append(
            f"these parts do not add up, by {c.complete_to:.2g} with {c.nodes} nodes: the metric is not "
            "smooth on the way, so trust single removals alone"
        )
    d = a.differences
    if d.codes:
        found.append(
            f"gradients agree with finite differences to {d.median:.1e}, at worst {d.worst:.1e} "
            f"(relative; the {d.codes} greatest)"
        )
    return found + _removals(a) + about["notes"]


def _removals(a: "Attribution") -> list[str]:
    if not a.shown.codes:
        return ["nothing was removed for real"]
    found = [f"gradient times code against {a.shown.codes} removals: {_agreement(a.shown)}"]
    if a.others.codes:
        found.append(f"and {a.others.codes} of latents as frequent: {_agreement(a.others)}")
    equal, random = a.equal, a.random
    if equal.reach is None or random.reach is None:
        few = min(equal.controls, random.controls)
        return [*found, f"{few} controls are too few to say what chance does: nothing is marked"]
    marked = sum(bool(each) for each in a.codes_seen["beyond_controls"])
    return [
        *found,
        f"95 % of latents as frequent move it by less than {number(equal.reach)}, of random directions by "
        f"less than {random.reach:.0%} of what the best of the same size would: {marked} of {a.shown.codes} "
        "removals exceed both (*)",
    ]


def _agreement(found: "Agreement") -> str:
    sign = "no sign" if math.isnan(found.sign) else f"{found.sign:.0%} of signs right"
    rank = "" if math.isnan(found.rank) else f", rank correlation {found.rank:.2f}"
    return sign + rank


def place_line(a: "Attribution") -> str:
    """Return the sentence on dictionary, model and hooks, and what does not count."""
    about = a.about
    hooks = about["hook"] + (f" to {about['target_hook']}" if "target_hook" in about else "")
    left = about["left_out"]
    out = f"; special or outlying tokens, which do not count: {left}" if left else ""
    return f"{about['dictionary']} of {about['model']}, {hooks}, in {about['dtype']}{out}"


def signed(value: float) -> str:
    """Return a number with its sign, in three decimals."""
    return f"{value:+.3f}"


def small(value: Any) -> str:
    """Return an effect in few digits, with its sign; None as a dash."""
    return "-" if value is None or not math.isfinite(value) else f"{value:+.3g}"


def code_views(a: "Attribution") -> list[CodeView]:
    """Return the codes that were removed as they are shown; where none were, the greatest 20."""
    seen, pieces = a.codes_seen, [shown(each) for each in a.tokens_seen["token"]]
    found = []
    for row in range(min(a.shown.codes or 20, len(seen["latent"]))):
        at, label = seen["position"][row], seen["label"][row]
        named = f"{seen['latent'][row]} {shown(label)}" if label else str(seen["latent"][row])
        cells = [str(at), named, number(seen["code"][row]), number(seen["rate"][row])]
        cells += [small(seen[key][row]) for key in ("effect", "exact")]
        cells += [number(seen["controls"][row]), small(seen["along"][row])]
        before = "".join(pieces[max(at - AROUND, 0) : at])
        after = "".join(pieces[at + 1 : at + 1 + AROUND])
        found.append(CodeView(cells, bool(seen["beyond_controls"][row]), before, pieces[at], after))
    return found


def token_views(a: "Attribution") -> list[TokenView]:
    """Return every token as it is shown."""
    seen, found = a.tokens_seen, []
    for row, token in enumerate(seen["token"]):
        flag = "special" if seen["special"][row] else "outlier" if seen["outlier"][row] else ""
        words = [f"{shown(token)!r}, id {seen['token_id'][row]}, position {row}"]
        if flag:
            words.append(f"{flag}: it does not count")
        else:
            words.append(f"{seen['codes'][row]} codes: {small(seen['effect'][row])} by gradient times code")
            words.append(f"what is not explained: {small(seen['error_effect'][row])} by gradient times error")
        effects = seen["effect"][row], seen["error_effect"][row]
        found.append(TokenView(shown(token), flag, *effects, "\n".join(words)))
    return found


def lines(a: "Attribution") -> list[str]:
    """Return the lines for a terminal: verdict, then the codes."""
    table = [["", *HEADINGS, "on"]]
    for each in code_views(a):
        where = f"{each.before}[{each.token}]{each.after}"
        table.append(["*" if each.marked else "", *each.cells, where])
    found = [*verdict(a), place_line(a)]
    if len(table) > 1:
        found += ["", *columns(table, None), FOOT]
    if any(row[0] for row in table):
        found.append(MARK)
    return found
