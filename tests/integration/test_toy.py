"""The toy model of superposition, through the command: known features are found, and drawn."""

import json

import pytest

from sae_dist.evaluation.table import format_table
from tests.helpers.warm import warm


def test_four_named_features_are_found_in_two_dimensions(tmp_path):
    done = warm(tmp_path, "train", "experiment=toy_tutorial", "name=toy", plots=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "toy"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["matching_score"] > 0.98 and summary["matched_share"] == 1 and summary["mmcs"] > 0.98
    assert summary["true_l0"] == pytest.approx(0.4) and summary["status"] == "finished"
    assert summary["firing_recall"] > 0.8 > summary["firing_precision"]
    assert (folder / "plots" / "recovery.png").stat().st_size > 1000
    assert "true features above 0.9" in done.stdout and "are synthetic" in done.stdout

    again = warm(tmp_path, "eval", "outputs/toy")
    assert again.returncode == 0, again.stderr
    measured = json.loads((folder / "summary.json").read_text())
    assert {key: measured[key] for key in summary if key != "eval_seconds"} == {
        key: summary[key] for key in summary if key != "eval_seconds"
    }
    assert again.stdout.startswith(format_table(measured))
    evaluated = json.loads((folder / "eval.json").read_text())
    assert evaluated["matching_score"] == measured["matching_score"]


@pytest.mark.long
def test_features_are_found_by_two_shards_and_without_an_evaluation(tmp_path):
    words = ["experiment=toy_superposition", "activations.num_features=64", "activations.width=32"]
    words += ["activations.mean_active=3", "sae.num_latents=64", "sae.k=3", "train_tokens=400k", "batch=1024"]
    words += ["eval.tokens=0", "topology.shard=2", "metrics.wandb=off", "name=toy"]
    done = warm(tmp_path, "train", *words, ranks=2)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "outputs" / "toy" / "summary.json").read_text())
    assert summary["matching_score"] > 0.9 and summary["fvu"] is None
    assert "firing_f1" not in summary
