"""What squeue says of a job, by a command of that name."""

import pytest

from sae_dist.core.slurm_queue import Job

JOB = Job("here", "77", "3", 0)


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Sets what `squeue` answers about jobs and steps, and scontrol about the cluster."""
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def answers(state, steps="77.3", code=0, message="", cluster="here"):
        lines = {
            "squeue": f"case $* in *--steps*) printf '{steps}\\n';; *) printf '{state}\\n';; esac\n"
            f"echo '{message}' >&2; exit {code}",
            "scontrol": f"echo 'ClusterName             = {cluster}'",
        }
        for name, body in lines.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)

    return answers


@pytest.mark.parametrize(
    ("state", "ended"),
    [("RUNNING", False), ("COMPLETING", False), ("SUSPENDED", False), ("PENDING", True), ("", True)],
)
def test_a_job_without_processes_has_ended(squeue, state, ended):
    squeue(state)
    assert JOB.has_ended() is ended


def test_a_job_that_is_forgotten_has_ended_and_silence_says_nothing(squeue):
    squeue("", code=1, message="slurm_load_jobs error: Invalid job id specified")
    assert JOB.has_ended()
    squeue("", code=1, message="Unable to contact slurm controller")
    assert not JOB.has_ended()


def test_a_step_that_is_over_has_ended(squeue):
    squeue("RUNNING", steps="77.batch\\n77.4")
    assert JOB.has_ended()


def test_numbers_of_another_cluster_say_nothing(squeue):
    squeue("", code=1, message="Invalid job id specified", cluster="elsewhere")
    assert not JOB.has_ended()


def test_a_job_that_was_put_back_into_the_queue_since(squeue, monkeypatch):
    squeue("RUNNING")
    for name, value in (("JOB_ID", "77"), ("CLUSTER_NAME", "here"), ("RESTART_COUNT", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert JOB.has_ended()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert not JOB.has_ended()


def test_without_slurm_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert Job.here() is None and not JOB.has_ended()
