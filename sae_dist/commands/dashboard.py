"""The command `sae-dist dashboard`: panels for a project of W&B."""

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show


def help_text() -> str:
    """Return the help text."""
    return """\
Makes a view in a W&B project (metrics.project, by default sae_dist), given as PROJECT or ENTITY/PROJECT, with
the panels to watch while dictionaries train: quality, optimizer, speed and where a step goes, GPUs and hosts,
over tokens. Prints its address. Needs a W&B key, and pip install 'sae-dist[dashboard]'.

Examples:
  sae-dist dashboard sae_dist
"""


def run(arguments: list[str]) -> None:
    """Make the view and print its address.

    Raises:
        ConfigError: not one project, or W&B cannot be reached with this machine's key.
    """
    if len(arguments) != 1:
        raise ConfigError("sae-dist dashboard needs one project of W&B, PROJECT or ENTITY/PROJECT")
    from sae_dist.metrics.dashboard import dashboard

    show(dashboard(arguments[0]))
