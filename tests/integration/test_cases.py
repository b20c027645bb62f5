"""What people ran into with other trainers, by the script that prints it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_every_case_is_right():
    done = subprocess.run([sys.executable, "tests/cases.py"], cwd=ROOT, text=True, capture_output=True)
    print(done.stdout)
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.count("right  ") >= 25
