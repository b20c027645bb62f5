"""Inputs made to break readers: success or one line, within 2 s of processor time and 500 MiB.

By hand, as many as there is time for: `python -m tests.helpers.fuzz all --inputs 10000`.
"""

import subprocess
import sys

import pytest

INPUTS = 40


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by what /proc says")
def test_every_reader_on_mutated_inputs():
    command = [sys.executable, "-m", "tests.helpers.fuzz", "all", "--inputs", str(INPUTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("s of processor time") >= 20
