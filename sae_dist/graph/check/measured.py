"""The measurements of a check: nodes, edges and paths of a graph in the real model, and controls.

Letters: as core.types; T nodes of the graph, M nodes that are cut, L logits of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.graph.check import paths as single_paths
from sae_dist.graph.check.agree import Agreement, agreement
from sae_dist.graph.check.chosen import Firing, controls, firing, random_directions, top_nodes
from sae_dist.graph.check.predicted import Floats, Path, Predicted
from sae_dist.graph.check.seen import Outcome
from sae_dist.graph.check.trials import Trials

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph

PER_SOURCE = 20
"""So many effects of a node on other nodes, the largest predicted ones, are compared."""


@dataclass(frozen=True)
class Cut:
    """A node that was cut, and doubled, in the real model.

    Attributes:
        node: its number in the graph.
        predicted: what cutting it does to the metric by the graph; doubling it does the opposite.
        cut, doubled: what each does in the model.
        control: a latent of equal size with little predicted effect; None: there is no other.
        control_cut: what cutting that does.
        random_cut: what a change of the same size in a random direction does.
    """

    node: int
    firing: Firing
    predicted: float
    cut: float
    doubled: float
    control: Firing | None
    control_cut: float | None
    random_cut: float


@dataclass(frozen=True)
class OnePath:
    """A path that was cut, and nothing else.

    Attributes:
        predicted, cut: what that does to the metric's first logit, by the graph and in the model.
    """

    path: Path
    predicted: float
    cut: float


@dataclass(frozen=True)
class Measured:
    """The results of all interventions.

    Attributes:
        metric: in words.
        cuts: nodes, largest predicted effect first.
        cut, doubled: predicted and measured effects of these on the metric.
        further: the same of these cut and of as many more, from the next largest to the smallest effect:
            among the largest alone, ranks are of numbers that hardly differ.
        held: as `cut`, where attention patterns and norms stay as they are, as in the graph.
        spread: on the pre-activations of later latents of the graph.
        edges: of single edges, where all other outputs stay as they are.
        by_paths: of single paths.
        paths: those.
        unsaid_M, moved_M: of each cut, the squared norm of the change of later layers' outputs that the
            dictionaries do not reproduce, and of that change; 0 where no later layer has a dictionary.
        error_share: of the influence in the graph, by error nodes.
        unfollowed: the same, by latents whose own inputs were not computed.
        missing: of what the layers add at the prompt, the share of the squared norm that dictionaries miss.
        likely, likely_without: the probability of the model's own next token, as it is and with every
            dictionary in its layer's place.
        same_without: whether it then is still the most likely one.
    """

    metric: str
    cuts: list[Cut]
    cut: Agreement
    further: Agreement
    held: Agreement
    doubled: Agreement
    spread: Agreement
    edges: Agreement
    by_paths: Agreement
    paths: list[OnePath]
    unsaid_M: Floats
    moved_M: Floats
    error_share: float
    unfollowed: float
    missing: float
    likely: float
    likely_without: float
    same_without: bool


def measure(
    graph: "Graph",
    predicted: Predicted,
    trials: Trials,
    weight_L: Floats,
    metric: str,
    *,
    nodes: int,
    paths: int,
    seed: int,
) -> Measured:
    """Cut and double nodes, cut edges and paths, and cut controls; see `Measured`.

    Args:
        trials: the real model at the graph's prompt.
        weight_L: of each of the graph's logits in the metric.

    Raises:
        ConfigError: the graph is of another prompt, model or set of dictionaries.
    """
    # All paths count, those through nodes that were pruned, too.
    effect_T = -graph.total.double().numpy() @ weight_L
    chosen, rest = top_nodes(predicted, effect_T, nodes)
    own = _firing(graph, trials, chosen)
    watching = trials.watching([_key(graph, n) for n in predicted.latents])
    cut = watching.run([[each.scaled(0.0)] for each in own], mediated=True)
    pinned = watching.run([[each.scaled(0.0)] for each in own], pinned=True)
    held_M = _on_metric(trials.run([[each.scaled(0.0)] for each in own], held=True), weight_L)
    doubled_M = _on_metric(trials.run([[each.scaled(2.0)] for each in own]), weight_L)
    cut_M, told_M = _on_metric(cut, weight_L), effect_T[chosen]
    further = trials.run([[each.scaled(0.0)] for each in _firing(graph, trials, rest)])
    all_M = np.concatenate([cut_M, _on_metric(further, weight_L)])
    effects = np.stack([told_M, cut_M, doubled_M])
    by_key = {_key(graph, n): float(effect_T[n]) for n in predicted.latents}
    found_paths = _paths(graph, predicted, trials, paths)
    scaled_MT = predicted.scaled(chosen, 0.0)
    likely, without, same = _without_errors(trials)
    return Measured(
        metric=metric,
        cuts=_beside_controls(trials, chosen, own, effects, by_key, weight_L, seed),
        cut=agreement(told_M, cut_M, seed),
        further=agreement(effect_T[chosen + rest], all_M, seed),
        held=agreement(told_M, held_M, seed),
        doubled=agreement(-told_M, doubled_M, seed),
        spread=_on_nodes(predicted, predicted.changes(scaled_MT) - scaled_MT, cut, False, seed),
        edges=_on_nodes(predicted, predicted.direct(scaled_MT), pinned, True, seed),
        by_paths=agreement(_column(found_paths, "predicted"), _column(found_paths, "cut"), seed),
        paths=found_paths,
        unsaid_M=cut.unsaid_C.numpy(),
        moved_M=cut.moved_C.numpy(),
        error_share=float(graph.error_share),
        unfollowed=float(graph.unfollowed),
        missing=missing(trials),
        likely=likely,
        likely_without=without,
        same_without=same,
    )


def _beside_controls(
    trials: Trials,
    chosen: Sequence[int],
    own: Sequence[Firing],
    effects: Floats,
    by_key: dict[tuple[int, int, int], float],
    weight_L: Floats,
    seed: int,
) -> list[Cut]:
    """Cut the controls of each node; return nodes with what was predicted and measured [3, M]."""
    others = controls(trials, own, by_key, seed)
    placebo = [each for each in others if each is not None]
    of_controls = _on_metric(trials.run([[each.scaled(0.0)] for each in placebo]), weight_L)
    of_random = _on_metric(trials.run([[each] for each in random_directions(own, seed)]), weight_L)
    left = iter(of_controls.tolist())
    found = []
    for m, n in enumerate(chosen):
        predicted, cut, doubled = effects[:, m].tolist()
        control_cut = None if others[m] is None else next(left)
        random_cut = float(of_random[m])
        found.append(Cut(n, own[m], predicted, cut, doubled, others[m], control_cut, random_cut))
    return found


def missing(trials: Trials) -> float:
    """Return which share of the squared norm of what layers add dictionaries miss, the mean over layers.

    A dictionary's bias, which it gives where no latent fires, counts as nothing. Only tokens count that the
    graph uses the dictionary at.
    """
    shares = []
    for layer in trials.layers:
        d, codes = trials.at(layer)
        used_S = trials.used_at(layer)
        real_S = used_S if bool(used_S.any()) else torch.ones_like(used_S)
        y_SE = trials.output(layer).to(d.dtype)
        error_SE = (y_SE - d.decode(codes, trials.input(layer)))[real_S].double()
        whole = float((y_SE - d.b_dec)[real_S].double().square().sum())
        shares.append(float(error_SE.square().sum()) / whole if whole else 0.0)
    return float(np.mean(shares))


def _firing(graph: "Graph", trials: Trials, chosen: Sequence[int]) -> list[Firing]:
    """Return nodes as they fire in the model, which must be as in the graph."""
    found = firing(trials, [_key(graph, n) for n in chosen])
    for n, each in zip(chosen, found, strict=True):
        node = graph.nodes[n]
        known = float(node.activation or 0.0)
        if abs(each.code - known) > 1e-2 * max(abs(known), 1e-6):
            raise ConfigError(
                f"{node.id} has the code {known:.4g} in the graph and {each.code:.4g} in the model; check a "
                "graph with the model, the dictionaries and the prompt that it was traced with"
            )
    return found


def _key(graph: "Graph", n: int) -> tuple[int, int, int]:
    node = graph.nodes[n]
    assert node.latent is not None
    return node.layer, node.position, node.latent


def _on_metric(outcome: Outcome, weight_L: Floats) -> Floats:
    found: Floats = outcome.logit_CT.numpy() @ weight_L
    return found


def _on_nodes(
    predicted: Predicted, change_MT: Floats, outcome: Outcome, with_logits: bool, seed: int
) -> Agreement:
    """Compare the largest predicted effects of each cut on other nodes with the measured ones."""
    at = [*predicted.latents, *(predicted.logits if with_logits else ())]
    moved_MT = np.concatenate(
        [outcome.pre_CM.numpy(), *([outcome.logit_CT.numpy()] if with_logits else [])], 1
    )
    told, found, group = [], [], []
    for m, row_T in enumerate(change_MT[:, at]):
        strongest = [n for n in np.argsort(-np.abs(row_T), kind="stable")[:PER_SOURCE] if row_T[n] != 0]
        told += row_T[strongest].tolist()
        found += moved_MT[m, strongest].tolist()
        group += [m] * len(strongest)
    return agreement(np.array(told), np.array(found), seed, group)


def _paths(graph: "Graph", predicted: Predicted, trials: Trials, number: int) -> list[OnePath]:
    if not number or not predicted.logits:
        return []
    best = predicted.paths(predicted.logits[0], number)
    inside = sorted({n for path in best for n in path.nodes[:-1]})
    nodes = dict(zip(inside, _firing(graph, trials, inside), strict=True))
    cut_C = single_paths.measured(trials, predicted, best, nodes)
    return [OnePath(path, -path.effect, float(cut)) for path, cut in zip(best, cut_C, strict=True)]


def _column(found: Sequence[OnePath], name: str) -> Floats:
    return np.array([getattr(each, name) for each in found], dtype=np.float64)


def _without_errors(trials: Trials) -> tuple[float, float, bool]:
    own_V, other_V = (each.double().softmax(-1) for each in (trials.clean.out_NV[0], trials.without_errors()))
    best = int(own_V.argmax())
    return float(own_V[best]), float(other_V[best]), int(other_V.argmax()) == best
