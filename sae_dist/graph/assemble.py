"""The graph of rows that are there: nodes and links after pruning, with what each node adds in all.

Letters: as core.types; P latents that fire, N of them with rows, T logits, t targets: P and T; C sources,
X sources of them that are candidates for nodes, M nodes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_dist.graph.graph import Checks, Graph, Layer, Node
from sae_dist.graph.influence import effects, influence
from sae_dist.graph.prune import Pruned, Selected, prune
from sae_dist.graph.replacement import Replacement
from sae_dist.graph.store import Store


@dataclass(frozen=True)
class _Keys:
    """The meaning of each source [C]: place (-1 of tokens), position, latent (-1 of errors and tokens)."""

    layer_C: Tensor
    position_C: Tensor
    latent_C: Tensor

    @classmethod
    def of(cls, replacement: Replacement) -> "_Keys":
        S, places = len(replacement.ids_S), len(replacement.sites)
        active = [(number, each) for number, each in enumerate(replacement.active) if each is not None]
        layers = [torch.full((len(each.code_P),), number) for number, each in active]
        rest = torch.arange(places).repeat_interleave(S)
        last = torch.full((S,), -1)
        return cls(
            torch.cat([*layers, rest, last]),
            torch.cat([*(each.position_P.cpu() for _, each in active), torch.arange(S).repeat(places + 1)]),
            torch.cat([*(each.latent_P.cpu() for _, each in active), torch.full((len(rest) + S,), -1)]),
        )


def assemble(
    replacement: Replacement,
    store: Store,
    weight_T: Tensor,
    checks: Checks,
    constant_t: Tensor,
    settings: dict[str, Any],
    probability_V: Tensor,
) -> Graph:
    """Return the graph of a store whose rows are complete and checked.

    Args:
        weight_T: of each logit in the influence; they sum to 1.
        constant_t: what each target is without any source.
    """
    P, T, S, depth = replacement.num_latents, len(weight_T), len(replacement.ids_S), len(replacement.sites)
    selected = Selected.of(store, P, T, S)
    pruned = prune(selected, weight_T, depth, settings["node_threshold"], settings["edge_threshold"])
    total_CT = effects(store, replacement.code_P.cpu(), T, depth)
    nodes, source_M = _nodes(replacement, selected, pruned, weight_T, probability_V)
    column_M = torch.where(source_M < 0, -1, selected.column_X[source_M.clamp(min=0)])
    rows, columns, weights = _links(selected, pruned, source_M, T)
    code_P = replacement.code_P.cpu().double()
    logit_T = _logits(replacement)
    is_latent_M, is_logit_M = (column_M >= 0) & (column_M < P), column_M < 0
    at_M = column_M[is_latent_M]
    values, constants = (torch.zeros(len(nodes), dtype=torch.float64) for _ in range(2))
    values[is_latent_M], constants[is_latent_M] = code_P[at_M], constant_t[at_M]
    values[is_logit_M], constants[is_logit_M] = logit_T, constant_t[P:]
    total = torch.zeros(len(nodes), T, dtype=torch.float64)
    total[~is_logit_M] = total_CT[column_M[~is_logit_M]]
    total[is_logit_M] = torch.diag(logit_T)
    ids, lm = replacement.ids_S.tolist(), replacement.lm
    errors, tokens, unfollowed = _ends(store, weight_T, P, S, depth, selected)
    ending = max(errors + tokens + unfollowed, torch.finfo(torch.float64).tiny)
    return Graph(
        nodes=nodes,
        rows=rows,
        columns=columns,
        weights=weights.float(),
        constants=constants.float(),
        total=total.float(),
        values=values.float(),
        ids=tuple(ids),
        tokens=tuple(lm.pieces(ids)),
        targets=tuple(lm.pieces(replacement.tokens_T.tolist())),
        prompt="",
        model=lm.name,
        set_name="",
        layers=_layers(replacement),
        error_share=errors / ending,
        unfollowed=unfollowed / ending,
        influence_sum=float(pruned.influence_X.sum()),
        replacement_score=pruned.replacement_score,
        completeness=pruned.completeness,
        latents=(P, selected.num_latents, sum(node.kind == "latent" for node in nodes)),
        checks=checks,
        settings=settings | {"logits": _said_of_logits(replacement)},
    )


def _nodes(
    replacement: Replacement, selected: Selected, pruned: Pruned, weight_T: Tensor, probability_V: Tensor
) -> tuple[tuple[Node, ...], Tensor]:
    """Return the nodes, and the number of each among the selected sources; -1 of logits."""
    keys, ids = _Keys.of(replacement), replacement.ids_S.tolist()
    kept = pruned.source_X.nonzero().squeeze(1)
    code_P = replacement.code_P.tolist()
    found: list[tuple[tuple[int, ...], Node, int]] = []
    for number, column in zip(kept.tolist(), selected.column_X[kept].tolist(), strict=True):
        layer, position = int(keys.layer_C[column]), int(keys.position_C[column])
        latent, share = int(keys.latent_C[column]), float(pruned.influence_X[number])
        if layer < 0:
            node = Node(f"t_{position}", "token", -1, position, token=ids[position], influence=share)
            found.append(((0, 0, position, 0), node, number))
        elif latent < 0:
            node = Node(f"e_{layer}_{position}", "error", layer, position, influence=share)
            found.append(((2, layer, position, 0), node, number))
        else:
            name = f"f_{layer}_{position}_{latent}"
            node = Node(name, "latent", layer, position, latent, None, code_P[column], share)
            found.append(((1, layer, position, latent), node, number))
    found.sort(key=lambda each: each[0])
    last, places = len(ids) - 1, len(replacement.sites)
    logits = [
        Node(
            f"l_{token}",
            "logit",
            places,
            last,
            token=token,
            influence=float(weight_T[number]),
            probability=float(probability_V[token]),
        )
        for number, token in enumerate(replacement.tokens_T.tolist())
    ]
    source_M = torch.tensor([*(number for _, _, number in found), *[-1] * len(logits)])
    return (*(node for _, node, _ in found), *logits), source_M


def _links(selected: Selected, pruned: Pruned, source_M: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the links between nodes by their numbers, sorted by target and source, with their weights."""
    target, source = pruned.link.nonzero(as_tuple=True)
    weight = selected.weight[target, source]
    M, X = len(source_M), len(selected.column_X)
    place_X = torch.full((X,), -1)
    own = source_M >= 0
    place_X[source_M[own]] = torch.arange(M)[own]
    N = selected.num_latents
    place_t = torch.cat([place_X[:N], torch.arange(M - T, M)])
    rows, columns = place_t[target], place_X[source]
    order = torch.argsort(rows * M + columns)
    return rows[order], columns[order], weight[order]


def _logits(replacement: Replacement) -> Tensor:
    """Return the logits of the targets in the untouched model, each less the mean of all [T], float64."""
    W_TD, bias_T = replacement.clean.head.rows(replacement.tokens_T)
    return (W_TD @ replacement.clean.final_D + bias_T).cpu().double()


def _said_of_logits(replacement: Replacement) -> str:
    softcap = replacement.clean.head.softcap
    return "logit less the mean of all logits" + (f", before its softcap of {softcap:g}" if softcap else "")


def _layers(replacement: Replacement) -> tuple[Layer, ...]:
    found = []
    for site in replacement.sites:
        d = site.dictionary
        if d is None:
            found.append(Layer(site.target))
        else:
            found.append(Layer(site.target, site.hook, str(d.place.folder), d.kind, d.num_latents))
    return tuple(found)


def _ends(
    store: Store, weight_T: Tensor, P: int, S: int, depth: int, selected: Selected
) -> tuple[float, float, float]:
    """Return the influence that ends in errors, in tokens, and in latents without rows."""
    found_C = influence(store, weight_T, P, depth)
    open_P = torch.ones(P, dtype=torch.bool)
    open_P[selected.column_X[: selected.num_latents]] = False
    return float(found_C[P:-S].sum()), float(found_C[-S:].sum()), float(found_C[:P][open_P].sum())
