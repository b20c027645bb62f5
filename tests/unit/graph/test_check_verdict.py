"""The verdict on a graph, from what was measured: each reason against it is enough, and is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sae_dist.graph.check.agree import agreement
from sae_dist.graph.check.judged import judged
from sae_dist.graph.check.measured import measure
from sae_dist.graph.check.predicted import Predicted
from sae_dist.graph.check.trials import Trials
from sae_dist.graph.sites import sites_of
from sae_dist.graph.trace import trace
from tests.helpers.planted_circuit import PROMPT, planted_circuit

RANDOM = agreement(*np.random.default_rng(0).normal(size=(2, 20)))


@pytest.fixture(scope="module")
def measured():
    d, lm = planted_circuit()
    graph = trace(d, lm, PROMPT, targets=["Paris", "Rome"], node_threshold=1.0, edge_threshold=1.0)
    trials = Trials(sites_of(d, lm), lm, torch.tensor(graph.ids), [6, 7])
    weight = np.array([1.0, 0.0])
    return graph, measure(graph, Predicted(graph), trials, weight, "the logit", nodes=20, paths=10, seed=0)


def test_all_that_is_as_predicted_explains(measured):
    verdict = judged(*measured)
    assert verdict.level == "explains" and verdict.lines[0].startswith("The model does what this graph says.")
    assert [each.title for each in verdict.tables] == ["Nodes", "Paths"]
    said = verdict.to_json()
    assert said["level"] == "explains" and len(said["tables"][0]["rows"]) == len(measured[1].cuts)
    ids = {node.id for node in measured[0].nodes}
    assert {row[0] for row in said["tables"][0]["rows"]} <= ids


@pytest.mark.parametrize(
    ("changed", "level", "named"),
    [
        ({"error_share": 0.51}, "little", "error nodes carry 51 % of the influence"),
        ({"unfollowed": 0.6, "error_share": 0.1}, "little", "not followed (--nodes) carry 60 %"),
        ({"unfollowed": 0.4, "error_share": 0.31}, "little", "error nodes carry 31 %"),
        ({"missing": 0.6}, "little", "the dictionaries miss 60 % of what their layers add"),
        ({"cut": RANDOM}, "little", "the signs of effects are not right beyond chance"),
        ({"further": RANDOM}, "little", "which node does more than another is not predicted"),
        ({"edges": RANDOM}, "partly", "single edges are not as predicted"),
        ({"by_paths": RANDOM}, "partly", "single paths are not as predicted"),
        ({"unsaid_M": np.ones(9), "moved_M": np.ones(9)}, "partly", "what later layers do"),
    ],
)
def test_one_reason_is_enough(measured, changed, level, named):
    graph, found = measured
    verdict = judged(graph, replace(found, **changed))
    assert verdict.level == level and named in verdict.lines[0]


def test_controls_that_do_as_much_are_a_reason(measured):
    graph, found = measured
    cuts = [replace(each, control_cut=2 * each.cut) for each in found.cuts]
    verdict = judged(graph, replace(found, cuts=cuts))
    assert verdict.level == "little" and "no more than other latents of equal size" in verdict.lines[0]


def test_sizes_that_are_wrong_are_a_reason(measured):
    graph, found = measured
    told = np.array([each.predicted for each in found.cuts])
    verdict = judged(graph, replace(found, cut=agreement(told, 0.3 * told)))
    assert verdict.level == "partly" and "0.30 times the predicted effect" in verdict.lines[0]


def test_few_latents_are_too_few_to_tell(measured):
    graph, found = measured
    verdict = judged(graph, replace(found, cuts=found.cuts[:4]))
    assert verdict.level == "little" and "too few to check" in verdict.lines[0]
    assert "signs" not in verdict.lines[0]
