"""The script for the first GPU: what it is given, how it ends, and that nothing finished is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from sae_dist.bench.first import hold, right, run
from sae_dist.bench.first.predictions import EXPECTED, beside
from sae_dist.core.errors import NumericsError

SCRIPT = Path(__file__).parents[3] / "launch" / "first_gpu.sh"
CPU = torch.device("cpu")
STUB = """#!/bin/sh
case "$*" in
*"run kernels"*) echo "kernels: wrong"; exit 1 ;;
*"run waits"*) sleep 60 ;;
*) echo "did $*" ;;
esac
"""


def started(folder: Path, *words: str, script: Path = SCRIPT) -> subprocess.Popen:
    """The script, with a python3 that answers and does nothing."""
    (folder / "bin").mkdir()
    stub = folder / "bin" / "python3"
    stub.write_text(STUB)
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", str(script), "--out", str(folder / "out"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_step_that_fails_stops_no_other_and_the_end_says_it(tmp_path):
    script = tmp_path / "launch" / "first_gpu.sh"
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text().replace("measure waits 60", "measure waits 1"))
    process = started(tmp_path, "--device", "cpu", "--part", "1", script=script)
    assert process.wait(timeout=60) == 1
    lines = (tmp_path / "out" / "index.txt").read_text().splitlines()
    codes = dict(re.findall(r"^(\w+) rc=(\d+)", "\n".join(lines), re.M))
    assert (
        lines[0] == "part 1" and codes["env"] == "0" and codes["kernels"] == "1" and codes["waits"] == "124"
    )
    assert codes["group"] == "0" and "kernels: wrong" in lines[2]


def test_what_would_pass_the_minutes_is_left_out(tmp_path):
    process = started(tmp_path, "--device", "cpu", "--part", "3", "--minutes", "1.2")
    assert process.wait(timeout=60) == 0
    said = (tmp_path / "out" / "index.txt").read_text()
    assert "last_row rc=0" in said and "wide left out: less than its 450 s" in said


def test_what_is_finished_is_kept_when_all_is_killed(tmp_path):
    process = started(tmp_path, "--device", "cpu", "--part", "1")
    index = tmp_path / "out" / "index.txt"
    end = time.monotonic() + 60
    while not (index.exists() and "kernels rc=1" in index.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with tarfile.open(tmp_path / "out" / "first_gpu.tgz") as kept:
        assert {"logs/env.log", "index.txt"} <= {name.removeprefix("./") for name in kept.getnames()}


@pytest.mark.parametrize("words", [["--device", "tpu"], ["--part", "4"], ["--devise", "cpu"]])
def test_other_words_are_refused_and_nothing_is_written(words, tmp_path):
    process = started(tmp_path, *words)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_every_step_of_the_script_exists_and_every_prediction_has_a_step():
    named = set(re.findall(r"^\s+measure (\w+) \d+$", SCRIPT.read_text(), re.M))
    assert named == set(run.STEPS) and set(EXPECTED) <= set(run.STEPS)


def test_a_number_outside_of_what_was_expected_is_said():
    assert beside("step", {"step_ms": 30.0})["step_ms"].startswith("as expected")
    assert beside("step", {"step_ms": 90.0})["step_ms"].startswith("not as expected")


def test_a_kernel_that_is_wrong_is_found(monkeypatch):
    assert right.kernels(CPU, True)["largest_error"] < 1e-5
    broken = right.choose_kernels("torch")
    monkeypatch.setattr(broken, "bias_gradient", lambda latent, value, F: torch.zeros(F))
    with pytest.raises(NumericsError, match="bias_gradient is off by 1 of its norm"):
        right.kernels(CPU, True)


def test_a_last_row_that_does_not_move_is_found(monkeypatch):
    assert hold.last_row(CPU, True)["last_row_error"] < 1e-6
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    with pytest.raises(NumericsError, match="the last of 4,096 rows"):
        hold.last_row(CPU, True)


def test_a_step_writes_what_it_found_and_ends_with_one_line(tmp_path):
    words = ["group", "--device", "cpu", "--small", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "sae_dist.bench.first.run", *words], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "backend gloo, collectives 4"
    assert json.loads((tmp_path / "group.json").read_text())["found"]["collectives"] == 4
