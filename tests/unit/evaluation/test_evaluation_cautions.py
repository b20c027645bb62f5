"""Cautions beside numbers that are unlikely to mean what they seem to."""

import pytest

from sae_dist.config.resolve import resolve
from sae_dist.core.types import LlmFacts
from sae_dist.evaluation.cautions import cautions
from sae_dist.evaluation.table import format_table
from sae_dist.launch.compose import compose_config
from tests.helpers.dictionaries import D, K, random_sae

GOOD = {"fvu": 0.2, "l0": 5.0, "eval_tokens": 500_000, "ce_recovered": 0.9}
CASES = [
    ({}, None, None),
    ({"fvu": 1.0, "l0": 2.5, "ce_recovered": 1.0}, None, None),
    ({"fvu": None, "l0": None, "eval_tokens": None, "ce_recovered": None}, None, None),
    (
        {"fvu": 7019.3},
        None,
        "FVU 7019 is above 1, worse than the mean alone: .*llm.name=embedded hook=layers.1",
    ),
    ({"l0": 2.4}, None, "L0 2.4 is far from k=5"),
    ({"l0": 11.0}, None, "L0 11.0 is far from k=5"),
    ({"eval_tokens": 256}, None, "measured on 256 activations of 500,000 asked"),
    ({"ce_recovered": 1.02}, None, "CE recovered is above 100 %"),
    ({}, False, "trained without a token .*prepend_bos=false.* measured with one"),
    ({}, True, None),
]


@pytest.fixture(scope="module")
def cfg():
    facts = LlmFacts("embedded", "", "layers.1:out", D, True, 256, 100, (1,), ())
    return resolve(compose_config(["sae.k=5", "sae.num_latents=40", "eval.tokens=500k"]), facts, D)


@pytest.mark.parametrize(("changes", "bos", "says"), CASES)
def test_each_number_has_its_own(cfg, changes, bos, says):
    sae, result = random_sae("topk"), GOOD | changes
    assert sae.k == K == 5
    sae.metadata = {} if bos is None else {"prepend_bos": bos}
    found = cautions(cfg, sae, result, begins=True)
    assert len(found) == (says is not None)
    if says is not None:
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(found[0])
    assert [line for line in format_table({"cautions": found}).splitlines()] == [
        f"caution: {f}" for f in found
    ]


def test_k_of_training_counts_and_a_model_without_bos(cfg):
    sae = random_sae("jumprelu")
    assert cautions(cfg, sae, GOOD | {"l0": 300.0}, begins=None) == []
    sae.metadata = {"training_k": 32, "prepend_bos": True}
    (k, bos) = cautions(cfg, sae, GOOD | {"l0": 300.0}, begins=False)
    assert "far from k=32" in k and "measured without one" in bos
