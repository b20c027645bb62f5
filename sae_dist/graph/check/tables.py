"""The tables of a verdict: nodes, paths, variants of the prompt, and other dictionaries' latents."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from sae_dist.graph.check.measured import Measured
from sae_dist.graph.check.seeds import Seeds
from sae_dist.graph.check.variants import Stability
from sae_dist.graph.check.verdict import Table

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph


def all_of(
    graph: "Graph", found: Measured, variants: Sequence[Stability], others: Seeds | None
) -> list[Table]:
    """Return all tables that have rows."""
    made = [_nodes(graph, found), _paths(graph, found), _variants(variants)]
    if others is not None:
        made.append(_others(graph, found, others))
    return [each for each in made if each.rows]


def _nodes(graph: "Graph", found: Measured) -> Table:
    rows = tuple(
        (
            graph.nodes[each.node].id,
            token(graph, each.firing.position),
            f"{each.firing.code:.3g}",
            f"{each.predicted:+.3f}",
            f"{each.cut:+.3f}",
            f"{each.doubled:+.3f}",
            "" if each.control_cut is None else f"{each.control_cut:+.3f}",
            f"{each.random_cut:+.3f}",
        )
        for each in found.cuts
    )
    header = ("node", "at", "code", "predicted", "cut", "doubled", "equal latent", "random")
    note = (
        f"Change of {found.metric}: cutting the node by the graph, and in the model; doubling it (the "
        "opposite is predicted); cutting another active latent of equal size; a change of the same size in a "
        "random direction."
    )
    return Table("Nodes", header, rows, note)


def _paths(graph: "Graph", found: Measured) -> Table:
    rows = tuple(
        (
            " > ".join(graph.nodes[n].id for n in each.path.nodes),
            f"{each.predicted:+.3f}",
            f"{each.cut:+.3f}",
        )
        for each in found.paths
    )
    note = "Change of the logit at the end where the first latent is cut and only this path may pass it on."
    return Table("Paths", ("path", "predicted", "cut"), rows, note)


def _variants(variants: Sequence[Stability]) -> Table:
    rows = tuple(
        (
            repr(each.variant.name),
            "yes" if each.says else "no",
            f"{each.fire} of {each.num}",
            f"{each.agreement.same_sign} of {each.agreement.num}",
            f"{each.agreement.rank:.2f}" if isfinite(each.agreement.rank) else "",
        )
        for each in variants
    )
    header = ("prompt", "same next token", "latents fire", "same sign", "rank")
    return Table("Other prompts", header, rows, "Each latent is cut wherever it fires, here and there.")


def _others(graph: "Graph", found: Measured, others: Seeds) -> Table:
    rows = tuple(
        (graph.nodes[each.node].id, str(latent), f"{cosine:.2f}")
        for each, latent, cosine in zip(found.cuts, others.latent_M, others.cosine_M, strict=True)
    )
    note = f"The latent of {others.name} for the same layer whose decoder row is nearest."
    return Table("Other dictionaries", ("node", "latent there", "cosine"), rows, note)


def token(graph: "Graph", position: int) -> str:
    """Return the token at a position, as it is shown."""
    return repr(str(graph.tokens[position]))
