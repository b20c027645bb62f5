"""The command `sae-dist resume`: an unfinished run, continued from its folder alone."""

from pathlib import Path

from sae_dist.commands.arguments import one_folder
from sae_dist.config.trust import granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import quoted


def help_text() -> str:
    """Return the help text."""
    return """\
Continues from the newest sound checkpoint, as the frozen config.yaml in the run folder says, to the export,
the evaluation and the table. On one machine it starts its own processes; within torchrun or a Slurm step it
joins. To train longer, or on another number of processes, repeat the sae-dist train command with name=NAME,
the new values and resume=auto.

What runs code is never taken from a file: a run with llm.trust_remote_code=true, or with a command in
activations.path, goes on where this command has the same word again.

Examples:
  sae-dist resume outputs/my_run
  sae-dist resume outputs/my_run llm.trust_remote_code=true
"""


def run(arguments: list[str]) -> None:
    """Continue a run.

    Raises:
        ConfigError: the arguments are not one folder.
        SaeDistError: see `launch.run.resume_command`.
    """
    arguments, granted = granted_by(arguments)
    if any("=" in argument for argument in arguments[1:]):
        raise ConfigError(
            f"{arguments[1]}: resume takes no keys, the run's config is frozen; to change metrics, "
            f"topology or length: sae-dist train ... {quoted('name=' + Path(arguments[0]).name)} resume=auto"
        )
    folder = one_folder(arguments, "resume", "one run folder, such as outputs/my_run")
    from sae_dist.launch.run import resume_command

    resume_command(folder, granted)
