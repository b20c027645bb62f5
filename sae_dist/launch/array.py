"""A sweep as one Slurm array, submitted by submitit: each task runs the job in its run folder."""

import shutil
from pathlib import Path

from sae_dist.config.rules.cluster import asks_apart, role_ranks
from sae_dist.config.run import RunConfig
from sae_dist.core.errors import ConfigError
from sae_dist.launch.submit import job_options

SPOOL = ".submitit"
"""Within the sweep's folder: what submitit pickles and reads again."""


def submit_array(folder: Path, scripts: list[Path], cfg: RunConfig) -> str:
    """Submit `submit.sbatch` of several runs as one array and return its number.

    A task is given the path of a script and composes nothing. All tasks get the resources of the first run,
    since all runs have one topology.

    Args:
        folder: of the sweep, absolute.

    Raises:
        ConfigError: submitit is not installed, or Slurm rejected the array.
    """
    try:
        import submitit
    except ImportError:
        raise ConfigError(
            "hydra/launcher=slurm needs submitit, which is not installed; pip install 'sae-dist[slurm]'"
        ) from None
    if asks_apart(cfg):
        raise ConfigError(
            "cluster.producer makes heterogeneous jobs, of which Slurm has no arrays; leave it out"
        )
    cluster = cfg.cluster
    options = {key.replace("-", "_"): value for key, value in job_options(cfg).items()}
    ranks = sum(role_ranks(cfg))
    # submitit would ask for one node.
    options |= {"ntasks": ranks, "nodes": cluster.nodes or f"1-{ranks}"}
    options |= {"requeue" if cluster.requeue else "no_requeue": True}
    for line in cluster.sbatch:
        name, equals, value = line.lstrip("-").partition("=")
        options[name] = value if equals else True
    executor = submitit.SlurmExecutor(folder / SPOOL)
    executor.update_parameters(
        job_name=folder.name,
        time=None,
        wckey=None,
        # The script starts its ranks by srun itself.
        use_srun=False,
        stderr_to_stdout=True,
        signal_delay_s=cluster.warn_s,
        array_parallelism=cluster.jobs or len(scripts),
        additional_parameters=options,
    )
    try:
        with executor.batch():
            jobs = [
                executor.submit(submitit.helpers.CommandFunction(["bash", str(each)], verbose=False))
                for each in scripts
            ]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        shutil.rmtree(folder / SPOOL, ignore_errors=True)
        said = " ".join(str(error).split())
        raise ConfigError(f"Slurm rejected the array: {said}; see the keys of cluster") from None
    return jobs[0].job_id.split("_")[0]
