"""The steps of `sae-dist train -m`: one run per combination, in turn or as an array of Slurm jobs."""

import dataclasses
import os
import re
from pathlib import Path

from sae_dist.config.kinds import SELECTED
from sae_dist.config.run import RunConfig
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError
from sae_dist.core.place import launched
from sae_dist.core.run_folder import CONFIG
from sae_dist.core.text import print_line, quoted, show
from sae_dist.launch.ahead import look_ahead
from sae_dist.launch.freeze import Frozen
from sae_dist.launch.overrides import expand, sweep_keys, written
from sae_dist.launch.run import checked, prepare, train_command
from sae_dist.launch.settle import composed, for_cluster

LAUNCHER = "hydra/launcher"
LAUNCHERS = ("basic", "slurm")


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: what it varies, and all of its overrides."""

    chosen: str
    overrides: list[str]


def multirun_command(overrides: list[str]) -> None:
    """Run every combination of the listed values, after each was checked, its model and data too.

    Raises:
        ConfigError: a run's input is wrong; nothing was written.
        SaeDistError: of the first run that fails.
    """
    if launched():
        raise ConfigError("-m starts its own processes; run it without a launcher around it")
    launcher, overrides = launcher_of(overrides)
    folder, jobs, cfg = plan(overrides, submitted=launcher == "slurm")
    if launcher == "slurm":
        submit_jobs(folder, jobs, cfg)
        return
    for job in jobs:
        checked(job.overrides, None)
    try:
        for number, job in enumerate(jobs):
            print_line(f"[{number + 1}/{len(jobs)}] {job.chosen}")
            train_command(job.overrides)
    finally:
        if any(folder.glob(f"*/{CONFIG}")):
            from sae_dist.evaluation.sweep import sweep_table

            show(sweep_table(folder))


def launcher_of(overrides: list[str]) -> tuple[str, list[str]]:
    """Return Hydra's name for what runs the jobs, and the other overrides.

    Raises:
        ConfigError: no such launcher.
    """
    given = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == LAUNCHER]
    launcher = given[-1] if given else "basic"
    if launcher not in LAUNCHERS:
        raise ConfigError(f"{LAUNCHER}={launcher} is not an option; options: {', '.join(LAUNCHERS)}")
    return launcher, [text for text in overrides if text.partition("=")[0] != LAUNCHER]


def plan(overrides: list[str], *, submitted: bool) -> tuple[Path, list[SweepRun], RunConfig]:
    """Return the sweep's folder, its jobs, and the config of the first.

    Raises:
        ConfigError: a combination is wrong, or two runs would share a folder.
    """
    keys, combinations = sweep_keys(overrides), expand(overrides)
    if not keys:
        raise ConfigError(
            "-m runs every combination of comma lists, such as sae.k=16,32; leave -m out for one run"
        )
    configs = [composed(each) for each in combinations]
    for cfg in configs:
        if "sae.k" in keys and cfg.sae.kind not in SELECTED:
            raise ConfigError(
                f"sae.k has several values, and is not read with sae.kind={cfg.sae.kind}; "
                "use sae=topk, or leave it out"
            )
        validate(for_cluster(cfg) if submitted else cfg, submitted=submitted, again=True)
        look_ahead(dataclasses.replace(cfg, name=None))
    base = configs[0]
    sweep = base.name or "sweep_" + "_".join(key.split(".")[-1] for key in keys)
    jobs = []
    for number, each in enumerate(combinations):
        chosen = [text for text in each if text.split("=")[0] in keys]
        name = re.sub(r"[^A-Za-z0-9._=,-]+", "_", ",".join(chosen)) or str(number)
        rest = [text for text in each if not text.startswith(("name=", "output="))]
        if base.metrics.group is None:
            # Runs of one sweep stand together in W&B.
            rest.append(f"metrics.group={written(sweep)}")
        jobs.append(
            SweepRun(
                " ".join(chosen),
                [*rest, f"output={written(str(Path(base.output) / sweep))}", f"name={written(name)}"],
            )
        )
    return Path(base.output).expanduser() / sweep, jobs, base


def submit_jobs(folder: Path, jobs: list[SweepRun], cfg: RunConfig) -> None:
    """Freeze every run, write its job, and submit them as one array.

    Raises:
        ConfigError: a run is wrong, or Slurm rejected the array; nothing is left behind.
    """
    from sae_dist.launch.array import submit_array
    from sae_dist.launch.submit import check_slurm, write_script

    check_slurm()
    frozen: list[Frozen] = []
    try:
        frozen += (prepare(job.overrides, None, submitted=True) for job in jobs)
        waiting = [each for each in frozen if not each.finished]
        scripts = [write_script(each.folder, each.granted) for each in waiting]
        if not scripts:
            return
        # Jobs may start before Slurm has answered.
        for each in frozen:
            each.release()
        job_id = submit_array(folder.resolve(), scripts, cfg)
    except ConfigError:
        for each in reversed(frozen):
            each.discard()
        raise
    finally:
        for each in frozen:
            each.release()
    shown = os.path.relpath(folder)
    show(
        f"submitted array {job_id} of {len(scripts)} jobs: {shown}; "
        f"their table: sae-dist sweep-table {quoted(shown)}"
    )
