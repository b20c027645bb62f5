"""The table of a sweep, from run folders alone."""

import csv
import json

import pytest

from sae_dist.config.resolve import resolve, resolved_members
from sae_dist.config.run import save_config
from sae_dist.core.errors import ConfigError
from sae_dist.evaluation.sweep import differing, runs_of, sweep_table
from sae_dist.launch.compose import compose_config


def make(folder, latents, k, fvu=None):
    run = folder / f"sae.num_latents={latents},sae.k={k}"
    run.mkdir()
    words = [f"sae.num_latents={latents}", f"sae.k={k}", f"name={run.name!r}"]
    save_config(resolve(compose_config(words), None, 64), run / "config.yaml")
    if fvu is not None:
        summary = {"status": "finished", "fvu": fvu, "l0": float(k), "tokens": 1000, "dead_fraction": None}
        (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_every_run_has_a_row_and_a_line_in_the_figure(tmp_path):
    for latents in (512, 1024):
        for k in (8, 16):
            make(tmp_path, latents, k, 100 / latents / k)
    (make(tmp_path, 2048, 8) / "metrics.jsonl").write_text("")
    make(tmp_path, 2048, 16)

    text = sweep_table(tmp_path)

    with open(tmp_path / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sae.num_latents"], row["sae.k"]) for row in rows][:2] == [("1024", "16"), ("1024", "8")]
    by_name = {row["run"]: row for row in rows}
    assert float(by_name["sae.num_latents=512,sae.k=8"]["fvu"]) == 100 / 512 / 8
    assert by_name["sae.num_latents=2048,sae.k=8"]["status"] == "unfinished"
    assert by_name["sae.num_latents=2048,sae.k=16"]["status"] == "not started"
    assert "dead_fraction" in rows[0] and "name" not in rows[0]
    assert "not started" in text and "0.0244" in text and "dead" not in text
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_what_follows_from_other_values_is_no_column(tmp_path):
    for latents in (64, 128):
        for aux_k in (16, 32):
            run = tmp_path / f"{latents},{aux_k}"
            run.mkdir()
            words = [f"sae.num_latents={latents}", f"sae.aux_k={aux_k}", f"sae.dead_after={latents}"]
            save_config(resolve(compose_config(words), None, 64), run / "config.yaml")
    assert differing(runs_of(tmp_path)) == ["sae.num_latents", "sae.aux_k"]


def test_a_grid_has_a_row_for_each_dictionary_even_if_it_is_gone(tmp_path):
    cfg = resolve(compose_config(["grid.k=[8,16]", "name=grid", "sae.num_latents=64"]), None, 64)
    save_config(cfg, tmp_path / "config.yaml")
    (tmp_path / "k=16").mkdir()
    save_config(resolved_members(cfg, None, 64)[1], tmp_path / "k=16" / "config.yaml")
    assert differing(runs_of(tmp_path)) == []
    sweep_table(tmp_path)
    with open(tmp_path / "sweep.csv", newline="") as file:
        found = [(row["run"], row["status"], row["sae.k"]) for row in csv.DictReader(file)]
    assert found == [("k=8", "missing", "8"), ("k=16", "not started", "16")]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no runs"):
        sweep_table(tmp_path)
