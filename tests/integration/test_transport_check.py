"""The command that checks the stream between two processes: here over gloo."""

import os
import re
import subprocess
import sys

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


def test_one_process_is_too_few():
    done = checked(1)
    assert done.returncode != 0 and "start two, with torchrun --nproc-per-node 2" in done.stderr
