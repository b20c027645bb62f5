"""A short run of the defaults learns: a tenth of the default run's tokens, with bars to match."""

import json

import pytest

from tests.helpers.warm import warm


@pytest.mark.long
def test_a_short_default_run_learns(tmp_path):
    words = ["train_tokens=200k", "eval.tokens=20k", "eval.ce_tokens=8k", "metrics.wandb=off", "name=short"]
    done = warm(tmp_path, "train", *words, plots=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "outputs" / "short" / "summary.json").read_text())
    assert summary["fvu"] < 0.22 and summary["fvu"] < 0.4 * summary["fvu_pca"]
    assert summary["fvu"] < 0.5 * summary["fvu_untrained"]
    assert summary["ce_recovered"] > 0.93
    assert 31 < summary["l0"] <= 32
    assert summary["status"] == "finished" and summary["steps"] == 97
    plots = {path.name for path in (tmp_path / "outputs" / "short" / "plots").iterdir()}
    assert {"loss_fvu.png", "sparsity_l0.png", "latents_density.png"} <= plots
