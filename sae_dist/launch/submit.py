"""The steps of `sae-dist submit`: freeze the run folder, write its job, pass that to Slurm."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from sae_dist.config.rules.cluster import asks_apart, role_ranks
from sae_dist.config.run import RunConfig, load_config
from sae_dist.config.trust import Granted, executing, words
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.core.place import launched
from sae_dist.core.process import own_command
from sae_dist.core.run_folder import CONFIG, JOB, LOGS
from sae_dist.core.text import check_plain, quoted, show
from sae_dist.launch.freeze import Frozen
from sae_dist.launch.options import data_folder
from sae_dist.launch.run import prepare

LOG = "all.log"
PLACE = re.compile(r"\{\{(\w+)\}\}")
SBATCH_TIMEOUT_S = 120
NO_CONTROLLER = ("Unable to contact slurm controller", "Could not establish a configuration source")
"""Parts of sbatch's message where Slurm's commands are installed without a cluster."""


def submit_command(overrides: list[str], *, only_write: bool = False) -> None:
    """Submit one run, from its overrides to a job in the queue.

    Args:
        only_write: write the job, do not submit it.

    Raises:
        ConfigError: the input is wrong, or Slurm rejected the job; nothing is left behind.
    """
    check_slurm(only_write)
    frozen = prepare(overrides, None, submitted=True, foretell=only_write)
    if frozen.finished:
        return
    try:
        script = write_script(frozen.folder, frozen.granted)
        # The job may start before sbatch has answered.
        frozen.release()
        job = None if only_write else sbatch([str(script)])
    except ConfigError:
        frozen.discard()
        raise
    finally:
        frozen.release()
    shown = os.path.relpath(script)
    written = f"{shown}\nwritten; start or continue it with: sbatch {quoted(shown)}"
    show(written if job is None else told(frozen, job))


def told(frozen: Frozen, job: str) -> str:
    """Return the line that is printed after a submission."""
    folder = os.path.relpath(frozen.folder)
    return f"submitted job {job}: {folder} (log: {folder}/{LOGS}/{LOG})"


def check_slurm(only_write: bool = False) -> None:
    """Check that jobs can be submitted from here.

    Raises:
        ConfigError: they cannot.
    """
    if launched():
        raise ConfigError("a job is submitted from a shell, not by the ranks of another")
    if not only_write and shutil.which("sbatch") is None:
        raise ConfigError(
            "there is no sbatch here; submit where Slurm's commands are, or only write the job: --dry-run"
        )


def sbatch(words: list[str]) -> str:
    """Submit a job and return its number.

    Raises:
        ConfigError: Slurm rejected it, or did not answer.
    """
    # Inside another job its variables would be taken for options of this one.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))
    }
    keep = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *words],
            capture_output=True,
            text=True,
            env=environment | keep,
            timeout=SBATCH_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"sbatch did not answer: {error}") from None
    if done.returncode:
        said = " ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines())
        if any(word in said for word in NO_CONTROLLER):
            raise ConfigError(f"sbatch finds no Slurm to submit to ({said}); --dry-run only writes the job")
        raise ConfigError(f"Slurm rejected the job: {said}; see the keys of cluster (cluster.partition, ...)")
    return done.stdout.strip().split(";")[0]


def write_script(folder: Path, granted: Granted) -> Path:
    """Write submit.sbatch of a frozen run folder, complete or absent, and return its path.

    Args:
        granted: what the command grants, all lines and options of the job among it; see `config.trust`.
    """
    folder = folder.resolve()
    cfg = load_config(folder / CONFIG, granted)
    (folder / LOGS).mkdir(exist_ok=True)
    path = folder / JOB
    write_text(path, render(cfg, folder))
    return path


def render(cfg: RunConfig, folder: Path) -> str:
    """Return the job of a run: slurm/train.sbatch, filled in.

    Args:
        folder: absolute; relative paths in the config are relative to the current folder.
    """
    for what, path in (("the run folder", folder), ("the working folder", Path.cwd())):
        check_plain(str(path), what)
    cluster = cfg.cluster
    parts = {
        "options": "\n".join(f"#SBATCH {line}" for line in option_lines(cfg, folder)),
        "folder": shlex.quote(str(folder)),
        "working_folder": shlex.quote(str(Path.cwd())),
        "restarts": str(cluster.restarts),
        "requeue": str(int(cluster.requeue)),
        "setup": "\n".join(
            [f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{cluster.cpus_per_task}}}"', *cluster.setup]
        ),
        "srun": step_line(cfg, folder),
    }
    text = (data_folder("slurm") / "train.sbatch").read_text(encoding="utf-8")
    # In one pass: what is filled in may hold braces itself.
    return PLACE.sub(lambda place: parts[place[1]], text)


def option_lines(cfg: RunConfig, folder: Path) -> list[str]:
    """Return the options of sbatch; for a heterogeneous job the consumers', `hetjob`, then the producers'."""
    cluster, producer = cfg.cluster, cfg.cluster.producer
    consumers, producers = role_ranks(cfg)
    apart = asks_apart(cfg)
    job = job_options(cfg)
    name = job_name(cfg, folder)
    once = {
        # A second job of the same run waits for the first.
        "dependency": "singleton",
        # Slurm's own words; in the script all else goes there, too. % would start a pattern.
        "output": str(folder / LOGS / LOG).replace("%", "%%"),
        "open-mode": "append",
        "requeue" if cluster.requeue else "no-requeue": None,
        "signal": f"USR2@{cluster.warn_s}",
    }
    ranks = {"ntasks": consumers if apart else consumers + producers}
    lines = lines_of({"job-name": name, **once, **job, **ranks}) + cluster.sbatch
    if apart:
        own = {key: getattr(producer, key.replace("-", "_")) for key in ("partition", "nodes", *PER_ROLE)}
        other = job | {key: value for key, value in own.items() if value is not None}
        other = {key: value for key, value in other.items() if value and (key != "nodes" or producer.nodes)}
        more = cluster.sbatch if producer.sbatch is None else producer.sbatch
        lines += ["hetjob", *lines_of({"job-name": f"{name}-producers", **other, "ntasks": producers}), *more]
    return [line if line == "hetjob" or line.startswith("-") else f"--{line}" for line in lines]


PER_ROLE = ("cpus-per-task", "gpus-per-task", "mem")


def job_options(cfg: RunConfig) -> dict[str, object]:
    """Return the options of sbatch that `cluster` sets, the same for every kind of job."""
    cluster = cfg.cluster
    asked: dict[str, object] = {
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "time": cluster.time,
        "nodes": cluster.nodes,
        "cpus-per-task": cluster.cpus_per_task,
        "gpus-per-task": cluster.gpus_per_task or None,
        "mem": cluster.mem,
    }
    return {key: value for key, value in asked.items() if value is not None}


def lines_of(options: dict[str, object]) -> list[str]:
    """Return each option as `--key=value`, or `--key` where there is no value."""
    return [
        f"--{key}" if value is None else f"--{key}={shlex.quote(str(value))}"
        for key, value in options.items()
    ]


def job_name(cfg: RunConfig, folder: Path) -> str:
    """Return a name that no other folder has, since jobs of one name wait for each other."""
    return f"{cfg.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def step_line(cfg: RunConfig, folder: Path) -> str:
    """Return the srun that starts every rank; consumers come first."""
    cluster = cfg.cluster
    # Rank 0 evaluates after the others have left; ranks that a failed one leaves behind end by themselves.
    options = ["srun", "--label", "--kill-on-bad-exit=0", "--wait=0"]
    resume = ["resume", str(folder), *words(executing(cfg))]
    if asks_apart(cfg):
        options.append("--het-group=0,1")
    else:
        options += [f"--ntasks={sum(role_ranks(cfg))}", f"--cpus-per-task={cluster.cpus_per_task}"]
    command = cluster.command or shlex.join(own_command())
    return f"{shlex.join([*options, *cluster.srun])} {command} {shlex.join(resume)}"
