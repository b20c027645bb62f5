"""The check of a graph: its nodes and paths are cut in the real model, and a verdict says what came of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.graph.asked import NODES, PATHS
from sae_dist.graph.check import variants as other_prompts
from sae_dist.graph.check.judged import judged
from sae_dist.graph.check.measured import measure
from sae_dist.graph.check.predicted import Floats, Predicted
from sae_dist.graph.check.seeds import seeds
from sae_dist.graph.check.trials import BATCH, Trials
from sae_dist.graph.check.verdict import Verdict
from sae_dist.graph.sites import sites_of
from sae_dist.graph.trace import exact_enough
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import as_model

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph


def check(
    graph: "Graph",
    dictionaries: Sequence[Dictionary],
    lm: Any,
    *,
    nodes: int = NODES,
    paths: int = PATHS,
    against: bool = False,
    paraphrases: Sequence[str] | None = None,
    other: Sequence[Dictionary] | None = None,
    other_name: str = "the other set",
    batch: int = BATCH,
    seed: int = 0,
) -> Verdict:
    """Compare a graph with what interventions do in the real model, where nothing is frozen.

    The nodes with the largest predicted effects are cut and doubled, edges and paths are cut alone, and for
    each node another active latent of equal size and a random direction are cut beside it. The same latents
    are cut in other prompts that say the same, and in dictionaries of another training.

    Args:
        dictionaries: those that the graph was traced with, in the order of the model.
        lm: the model; of half precision, a copy in float32 is made.
        nodes, paths: how many are cut.
        against: effects are of the first logit minus the second; else minus the mean logit.
        paraphrases: other prompts; None: the prompt with something before it.
        other: dictionaries for the same hooks, such as those of another seed.
        batch: how many changes are computed at once.

    Raises:
        ConfigError: graph, dictionaries and model do not belong together.
    """
    model = exact_enough(as_model(lm))
    ids_S = torch.as_tensor(graph.ids, dtype=torch.int64).reshape(-1)
    predicted = Predicted(graph)
    tokens = [int(graph.nodes[n].token or 0) for n in predicted.logits]
    weight_L, metric = metric_of(graph, predicted, against)
    trials = Trials(
        sites_of(dictionaries, model, force=True),
        model,
        ids_S,
        [int(each or 0) for each in tokens],
        batch=batch,
    )
    found = measure(graph, predicted, trials, weight_L, metric, nodes=nodes, paths=paths, seed=seed)
    made = paraphrases is None
    variants = (
        other_prompts.made(model, ids_S.tolist())
        if paraphrases is None
        else other_prompts.given(model, paraphrases, "--paraphrases")
    )
    latents = list(dict.fromkeys((each.firing.layer, each.firing.latent) for each in found.cuts))
    stable = other_prompts.stability(trials, latents, weight_L, variants, seed)
    again = None
    if other is not None:
        influence = [float(graph.nodes[each.node].influence) for each in found.cuts]
        there = sites_of(other, model, force=True)
        again = seeds(trials, found.cuts, influence, weight_L, there, other_name, seed)
    return judged(graph, found, stable, again, seed=seed, made=made)


def metric_of(graph: "Graph", predicted: Predicted, against: bool) -> tuple[Floats, str]:
    """Return the weight of each logit of a graph in what is compared, and that in words.

    Raises:
        ConfigError: the graph has no logit, or no second one.
    """
    logits = predicted.logits
    if len(logits) < 1 + against:
        raise ConfigError(
            f"the graph has {len(logits)} logits; trace one with a target{' and another' * against}"
        )
    weight_L = np.zeros(len(logits))
    weight_L[: 1 + against] = [1.0, -1.0][: 1 + against]
    names = [repr(text) for text in graph.targets[: 1 + against]]
    minus = f"that of {names[1]}" if against else "the mean logit"
    return weight_L, f"the logit of {names[0]} minus {minus}"
