"""The command `sae-dist submit`: a run as a Slurm job."""

import textwrap

from sae_dist.commands.arguments import without

HELP = """\
Checks and freezes a run as sae-dist train does, writes its job submit.sbatch into the run folder and submits
it, with one task per rank. Accepts the keys of sae-dist train (train --help).

  --dry-run                 only write the job, and print what each rank will hold; sbatch
                            outputs/NAME/submit.sbatch starts it

{cluster}
  output=...                a folder that all nodes see

The job goes back into the queue by itself when it is preempted, reaches its time limit or loses a node, and
continues from its newest checkpoint. sbatch outputs/NAME/submit.sbatch continues a run whose job has ended.
Logs are in outputs/NAME/logs: all.log of all ranks, rank_N.log of each.

Examples:
  sae-dist submit cluster=mysite name=wide sae.num_latents=1048576 topology.producers=8 topology.shard=16
  sae-dist train -m hydra/launcher=slurm cluster=mysite name=sweep sae.num_latents=16384,32768 sae.k=32,64
"""


def help_text() -> str:
    """Return the help text, with the cluster files there are and the keys of a cluster."""
    from sae_dist.config.run import schema
    from sae_dist.launch.options import groups

    keys = [key.removeprefix("cluster.") for key in schema() if key.startswith("cluster.")]
    options, keys_in_words = ", ".join(groups()["cluster"]), ", ".join(keys)
    entries = {
        "cluster=FILE": f"conf/cluster/FILE.yaml, what the job asks for; here: {options}",
        "cluster.partition=...": f"or another key of cluster (--help cluster explains all): {keys_in_words}",
    }
    lines = []
    for name, text in entries.items():
        lines += textwrap.wrap(text, 110, initial_indent=f"  {name:<26}", subsequent_indent=" " * 28)
    return HELP.format(cluster="\n".join(lines))


def run(arguments: list[str]) -> None:
    """Submit a run; with --dry-run only write its job.

    Raises:
        ConfigError: see `launch.submit.submit_command`.
    """
    from sae_dist.launch.options import tell_defaults

    tell_defaults()
    overrides, only_write = without(arguments, "--dry-run")
    from sae_dist.launch.submit import submit_command

    submit_command(overrides, only_write=only_write)
