"""The scripts of launch/ that one machine can run, with tiny values."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import TINY

ROOT = Path(__file__).parents[2]
SHORT = [*(word for word in TINY if not word.startswith(("sae.k=", "sae.num_latents="))), "train_tokens=7680"]

pytestmark = pytest.mark.long


def run(folder: Path, script: str, *overrides: str, **values: str) -> str:
    """A script, as a reader starts it; returns what it printed."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "sae-dist"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sae_dist.cli "$@"\n')
    command.chmod(0o755)
    found = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [ROOT / "launch" / script, *overrides, "eval.ce_tokens=0"],
        cwd=folder,
        env=os.environ | found | values,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_one_node(tmp_path):
    run(tmp_path, "one_node.sh", *SHORT, "sae.num_latents=1024", "sae.k=16", processes="2", producers="1")
    done = summary(tmp_path / "outputs" / "one_node")
    assert (done["status"], done["world_size"], done["steps"]) == ("finished", 2, 10)


def test_a_sweep_and_its_table(tmp_path):
    printed = run(tmp_path, "sweep.sh", *SHORT, latents="1024", k="8,16")
    sweep = tmp_path / "outputs" / "sweep"
    assert [summary(sweep / each)["status"] for each in ("sae.k=8", "sae.k=16")] == ["finished"] * 2
    assert (sweep / "sweep.csv").is_file() and (sweep / "report.html").is_file()
    assert "sae.k=16" in printed
