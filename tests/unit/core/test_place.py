"""Who a process is, from what its launcher says, and that this is known without torch."""

import subprocess
import sys

import pytest

from sae_dist.core.place import Place, launched, launcher, place

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967291"}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
ALONE = Place(0, 1, 0, 1)
CASES = {
    "a shell": ({}, None, ALONE),
    "torchrun": (TORCHRUN, "torchrun", Place(5, 8, 1, 4)),
    "torchrun with one process": ({"RANK": "0", "WORLD_SIZE": "1"}, "torchrun", ALONE),
    "a rank without a world": ({"RANK": "3"}, None, ALONE),
    "a batch script": (BATCH_SCRIPT, None, ALONE),
    "a step of one task": (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, None, ALONE),
    "a step": (STEP, "srun", Place(5, 8, 1, 4)),
    "torchrun in a step": (STEP | TORCHRUN | {"RANK": "6"}, "torchrun", Place(6, 8, 1, 4)),
}


@pytest.mark.parametrize(("environment", "by", "where"), CASES.values(), ids=CASES)
def test_place(environment, by, where, monkeypatch):
    for key in (*TORCHRUN, *STEP, *BATCH_SCRIPT):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert launcher() == by and launched() == (by is not None) and place() == where


def test_what_answers_wrong_input_needs_no_torch():
    names = ("core.place", "core.files", "core.run_folder", "core.errors", "launch.settle", "launch.freeze")
    imported = ", ".join(f"sae_dist.{name}" for name in names)
    script = f"import sys, {imported}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
