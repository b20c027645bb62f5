"""Calls of the system that fail under a whole run: one line, then the same run bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.faults import HERE

ROOT = Path(__file__).parents[2]
CHOSEN = [
    {"kind": "write", "part": "metrics.jsonl", "nth": 2, "error": "ENOSPC", "for_good": True},
    {"kind": "write", "part": "/.tmp", "nth": 1, "error": "EIO", "for_good": False},
    {"kind": "rename", "part": "latest", "nth": 2, "error": "EROFS", "for_good": True},
    {"kind": "open", "part": "summary.json", "nth": 1, "error": "EDQUOT", "for_good": False},
]
"""One of each sort: metrics alone, a library's write, a checkpoint half published, a result."""


@pytest.mark.long
def test_faults_are_one_line_and_cost_nothing(tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("no compiler: cc is missing")
    out = tmp_path / "faults.jsonl"
    done = subprocess.run(
        [sys.executable, HERE, "--only", json.dumps(CHOSEN), "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    met = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(met) == len(CHOSEN) and all(each["hit"] for each in met)
    assert "rows of" in met[0]["line"] and "No space left on device" in met[0]["line"]
    assert "cannot write a checkpoint" in met[1]["line"] and "Input/output error" in met[1]["line"]
