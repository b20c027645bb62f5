"""Slurm itself: two nodes on this machine, which slurm/testcluster/up starts."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.commands import TINY, answer, rows, train
from tests.helpers.processor_time import host_factor
from tests.helpers.runs import results, same_weights

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "slurm" / "testcluster"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch")
SPLIT = ["topology.producers=1", "topology.shard=2", "cluster=testcluster"]
LENGTH = ["train_tokens=307200", "checkpoint.every=15360", "activations.scaling=centred", "hook=layers.0"]
BACK_WITHIN_S = 60
"""From a killed rank to the next step; and after the hold of a requeued job, which is Slurm's own."""


def cannot():
    """Why there can be no cluster here; None: there can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"Slurm is not installed: {', '.join(missing)} is missing"
    return "a Slurm of one's own needs root" if os.geteuid() else None


def bring(what):
    done = subprocess.run([CLUSTER / what], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cluster():
    reason = cannot()
    if reason:
        pytest.skip(reason)
    bring("up")
    yield Path(os.readlink("/etc/slurm/slurm.conf")).parent
    bring("down")
    alive = [each for each in psutil.process_iter(["name", "status"]) if each.info["status"] != "zombie"]
    assert [each for each in alive if each.info["name"].startswith(("slurm", "munge"))] == []


def sae_dist(folder, *words):
    """The command, new; jobs that it submits find this checkout too."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "sae_dist.cli", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def slurm(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def log(run):
    path = run / "logs" / "all.log"
    return path.read_text() if path.exists() else ""


def wait(what, run, timeout_s=300):
    """Until `what` is true, looked at often; seconds that it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, log(run)
        time.sleep(0.05)
    return time.monotonic() - began


def steps(run):
    """Steps in metrics.jsonl, the last line perhaps being written."""
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def starts(run):
    """Steps that the run has been continued from."""
    return [int(step) for step in re.findall(r"from step (\d+)", log(run))]


def moves_on(run, before):
    """Seconds until the run that was started `before` times makes steps beyond those that it had."""
    return wait(lambda: len(starts(run)) > before and steps(run) > starts(run)[-1], run)


def newer_checkpoint(run):
    """Until there is a checkpoint that the run has not been continued from."""
    latest = run / "checkpoints" / "latest"
    last = starts(run)[-1]
    wait(lambda: latest.exists() and int(latest.read_text().strip().removeprefix("step_") or 0) > last, run)


def finished(run):
    path = run / "summary.json"
    return path.exists() and json.loads(path.read_text()).get("status") == "finished"


def idle():
    return slurm("squeue", "--noheader") == ""


def slowed(*words):
    """Overrides of a run that lasts long enough to be hit several times."""
    return ["submit", *TINY, *LENGTH, *SPLIT, *words]


def test_whatever_happens_the_run_goes_on(cluster, tmp_path):
    """A rank is killed, the job put back, told to stop, a node lost: the end is that of a run without it."""
    run = tmp_path / "outputs" / "hit"
    said = sae_dist(tmp_path, *slowed("name=hit", "metrics.wandb=offline"))
    assert said.count("\n") == 1
    job = re.search(r"job (\d+)", said)[1]
    wait(lambda: starts(run), run)

    newer_checkpoint(run)
    victim = next(
        each
        for each in psutil.process_iter(["environ", "cmdline"])
        if (each.info["environ"] or {}).get("SLURM_PROCID") == "2"
        and each.info["environ"].get("SLURM_JOB_ID") == job
        and "resume" in (each.info["cmdline"] or [])
    )
    victim.send_signal(signal.SIGKILL)
    took = {"a rank killed": moves_on(run, 1)}
    assert "task 2: Killed" in log(run) and "start again from the newest checkpoint (1 of 3)" in log(run)

    newer_checkpoint(run)
    slurm("scontrol", "requeue", job)
    took["requeued"] = moves_on(run, 2)

    newer_checkpoint(run)
    slurm("scancel", "--signal=USR2", job)
    took["told to stop"] = moves_on(run, 3)
    assert "stopped on request; the job goes back into the queue" in log(run)

    newer_checkpoint(run)
    os.kill(int((cluster / "sae2.pid").read_text()), signal.SIGKILL)
    # What Slurm finds by itself after SlurmdTimeout, by when this short run might be over.
    slurm("scontrol", "update", "nodename=sae2", "state=down", "reason=killed")
    wait(lambda: "NODE FAILURE" in log(run), run)
    bring("up")
    took["a node lost"] = moves_on(run, 4)

    wait(lambda: finished(run) and idle(), run)
    print("seconds to the next step:", {what: round(seconds, 1) for what, seconds in took.items()})
    assert took["a rank killed"] < BACK_WITHIN_S * host_factor()
    assert [row["step"] for row in rows(run)] == list(range(1, 401))
    assert len(starts(run)) == 5 and min(starts(run)[1:]) > 0
    ids = {path.name.rsplit("-", 1)[1] for path in (run / "wandb").glob("offline-run-*")}
    assert len(ids) == 1 and len(list((run / "wandb").glob("offline-run-*"))) >= 5
    errors = [line for line in log(run).splitlines() if "sae-dist: error:" in line]
    assert len(errors) == len(set(errors)) and "Traceback" not in log(run)
    assert all(re.match(r"rank \d+: on sae[12]: sae-dist: error: ", line) for line in errors)
    assert all((run / "logs" / f"rank_{rank}.log").stat().st_size for rank in range(3))

    train(tmp_path, "alone", *LENGTH, *SPLIT[:2])
    assert results(run) == results(tmp_path / "outputs" / "alone")
    assert same_weights(run, tmp_path / "outputs" / "alone")


def test_a_finished_run_says_so(cluster, tmp_path):
    sae_dist(tmp_path, "submit", "--dry-run", *TINY, "train_tokens=3840", "name=short", *SPLIT)
    run = tmp_path / "outputs" / "short"
    assert idle() and not log(run)
    for _ in range(2):
        slurm("sbatch", str(run / "submit.sbatch"))
    wait(lambda: idle(), run)
    assert finished(run) and "short is finished; see summary.json" in log(run)
    assert log(run).count("from step 0") == 1
    assert "is finished" in sae_dist(tmp_path, "submit", *TINY, "train_tokens=3840", "name=short", *SPLIT)


def test_producers_that_ask_apart_train_in_one_heterogeneous_job(cluster, tmp_path):
    apart = ["cluster.nodes=1", "cluster.producer.cpus_per_task=2", "name=roles", "train_tokens=15360"]
    sae_dist(tmp_path, "submit", *TINY, *SPLIT, *apart)
    run = tmp_path / "outputs" / "roles"
    names = slurm("squeue", "--noheader", "--format=%i %j").splitlines()
    assert len(names) == 2 and names[1].endswith("-producers")
    wait(idle, run)
    assert finished(run) and [row["step"] for row in rows(run)] == list(range(1, 21))
    assert "1 producers, 1 x 2 consumers" in log(run)


def test_what_slurm_does_not_take_leaves_nothing(cluster, tmp_path):
    words = ["submit", *TINY, "name=wrong", *SPLIT, "cluster.partition=nowhere"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "sae_dist.cli", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    said = answer(done.stderr)
    assert done.returncode == 2 and said.count("\n") == 1 and "invalid partition" in said
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_an_array(cluster, tmp_path):
    """Two widths by two k, each run on two ranks; one of them is stopped, and comes back."""
    varied = ["sae.num_latents=512,1024", "sae.k=8,16", "name=widths", "hydra/launcher=slurm"]
    tiny = [word for word in TINY if not word.startswith(("sae.", "eval."))]
    short = ["train_tokens=15360", "eval.tokens=8192", "eval.ce_tokens=0", "topology.shard=2"]
    said = sae_dist(tmp_path, "train", "-m", *tiny, *short, *varied, "cluster=testcluster", "cluster.jobs=2")
    sweep = tmp_path / "outputs" / "widths"
    job = re.search(r"array (\d+) of 4 jobs", said)[1]
    first = sweep / "sae.num_latents=512,sae.k=8"
    table = sae_dist(tmp_path, "sweep-table", str(sweep))
    assert table.count("not started") + table.count("unfinished") + table.count("finished") >= 4
    wait(lambda: starts(first), first)
    slurm("scancel", "--signal=USR2", f"{job}_0")
    wait(idle, first)

    runs = sorted(path.parent for path in sweep.glob("*/config.yaml"))
    assert len(runs) == 4 and all(finished(run) for run in runs), [log(run) for run in runs]
    sae_dist(tmp_path, "sweep-table", str(sweep))
    with open(sweep / "sweep.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert {(row["sae.num_latents"], row["sae.k"]) for row in found} == {
        ("512", "8"),
        ("512", "16"),
        ("1024", "8"),
        ("1024", "16"),
    }
    assert all(row["status"] == "finished" and 0 < float(row["fvu"]) < 1 for row in found)
    assert (sweep / "sweep.png").stat().st_size > 10_000
    assert all("group: widths" in (run / "config.yaml").read_text() for run in runs)
