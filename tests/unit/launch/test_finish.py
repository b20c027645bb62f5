"""The end of a run: what was trained is kept, whatever evaluation meets."""

from pathlib import Path

import pytest

from sae_dist.config.needs import evaluation_tokens
from sae_dist.config.resolve import resolve
from sae_dist.core.errors import ConfigError, DataError, SaeDistError
from sae_dist.core.files import write_json
from sae_dist.launch.compose import compose_config
from sae_dist.launch.run import before_evaluation, keeping_what_was_trained
from tests.unit.config.test_config_rules import FACTS


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_a_trained_run_is_not_refused_as_wrong_input(kind):
    with pytest.raises(SaeDistError) as found, keeping_what_was_trained(Path("outputs/x")):
        raise kind("tokens.path=texts does not exist")
    assert found.value.exit_code == 1
    said = str(found.value)
    assert "is trained" in said and "texts does not exist" in said and "sae-dist resume outputs/x" in said


def test_what_comes_after_training_is_said_with_its_time(tmp_path):
    write_json(tmp_path / "summary.json", {"tokens_per_second": 10_000.0})
    cfg = resolve(compose_config(["llm.name=embedded", "train_tokens=2M"]), FACTS, FACTS.width)
    said = before_evaluation(cfg, tmp_path)
    assert "evaluating 500k held-out activations, about 01:34; Ctrl-C is safe" in said
    cfg.eval.tokens = 0
    assert "no evaluation (eval.tokens=0)" in before_evaluation(cfg, tmp_path)
    assert evaluation_tokens(cfg) == 0


def test_many_ranks_train_faster_than_one_process_evaluates():
    alone, split = (
        resolve(compose_config(words), FACTS, FACTS.width)
        for words in ([], ["topology.shard=8", "topology.producers=4"])
    )
    assert evaluation_tokens(split) == 4 * evaluation_tokens(alone)
