"""The command that checks the stream between two processes: here over gloo."""

import os
import re
import subprocess
import sys

import pytest

from sae_dist import cli
from sae_dist.transport.check import main

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
CHECK = ["-m", "sae_dist.transport.check", "--device", "cpu", "--rows", "256", "--width", "128"]


def checked(processes, *options):
    command = [*TORCHRUN, str(processes), *CHECK, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_order_contents_and_speed():
    done = checked(2, "--chunks", "300")
    assert done.returncode == 0, done.stderr
    line = "300 chunks of 0.07 MB over gloo: all in order and equal; "
    found = re.search(line + r"(\d+) MB/s, isend and irecv alone (\d+) MB/s", done.stdout)
    assert found and all(int(rate) > 0 for rate in found.groups()), done.stdout


def test_one_process_is_too_few(capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", CHECK[1:])
    assert main() == 2 and "start two, with torchrun --nproc-per-node 2" in capfd.readouterr().err


def test_the_command_starts_both_processes(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "--rows", "64", "--width", "32", "--chunks", "32"]) == 0
    assert "32 chunks of 0.00 MB over gloo: all in order and equal" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--chunks 3", "--chunks 3 is too few; give 16 or more; see sae-dist check --help"),
        ("--rows 0", "--rows 0 must be greater than 0"),
        ("--devise cpu", "unrecognized arguments: --devise cpu"),
        ("--device cuda", "--device cuda: the check needs 2 GPUs and finds"),
    ],
)
def test_wrong_options_are_one_line(words, says, capfd, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert cli.main(["check", *words.split()]) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1
