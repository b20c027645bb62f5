"""The options of `sae-dist graph`, and where it writes."""

from pathlib import Path

import pytest

from sae_dist.commands.graph import asked_of, help_text
from sae_dist.core.errors import ConfigError

HERE = ["outputs/set", "The capital of France is"]


def test_what_is_not_given_has_the_values_of_the_help():
    asked = asked_of(HERE)
    assert (asked.targets, asked.against, asked.checked, asked.paths) == ((), False, 20, 10)
    assert asked.settings == {"max_nodes": 2000, "batch": 64, "node_threshold": 0.8, "edge_threshold": 0.98}
    assert "(2000)" in help_text() and "(20)" in help_text()


def test_targets_are_texts_or_numbers():
    asked = asked_of([*HERE, "--target", " Paris", "--against", "id:7"])
    assert asked.targets == (" Paris", 7) and asked.against
    assert asked_of([*HERE, "--no-check"]).checked == 0


def test_each_prompt_and_target_has_a_folder():
    folders = {
        asked_of(each).folder
        for each in (HERE, [HERE[0], "Another"], [*HERE, "--target", "a"], [*HERE, "--nodes", "7"])
    }
    assert len(folders) == 4 and all(each.parent == Path("graphs") for each in folders)
    assert asked_of([HERE[0], "../../x\n"]).folder.name.startswith("x-")
    assert asked_of([*HERE, "--out", "there"]).folder == Path("there")


def test_a_run_has_its_graphs_inside(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    assert asked_of([str(tmp_path), "x"]).folder.parent == tmp_path / "graphs"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--against", "x"], "--target"),
        (["--nodes", "0"], "--nodes 0"),
        (["--nodes", "many"], "--nodes many"),
        (["--check", "0"], "--check 0"),
        (["--node-threshold", "2"], "--node-threshold 2"),
        (["--edge-threshold", "nan"], "--edge-threshold nan"),
        (["--target", "id:x"], "--target id:x"),
        (["--device", "tpu"], "--device tpu"),
        (["--unknown"], "--unknown"),
    ],
)
def test_what_is_wrong_is_named(more, named):
    with pytest.raises(ConfigError, match=named):
        asked_of([*HERE, *more])


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="the prompt is empty"):
        asked_of([HERE[0], ""])
