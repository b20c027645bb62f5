"""The command `sae-dist sweep-table`: the results of the runs in a folder, side by side."""

from sae_dist.commands.arguments import one_folder
from sae_dist.core.text import show


def help_text() -> str:
    """Return the help text."""
    return """\
Writes FOLDER/sweep.csv, a row for each run or dictionary of a grid, unfinished ones too, with the values in
which they differ, and FOLDER/sweep.png, FVU against L0 and latents. Prints the table.

Examples:
  sae-dist sweep-table outputs/my_sweep
"""


def run(arguments: list[str]) -> None:
    """Write, draw and print the table of the runs in a folder.

    Raises:
        ConfigError: there is no run in it.
    """
    folder = one_folder(arguments, "sweep-table", "one folder of runs, such as outputs/my_sweep")
    from sae_dist.evaluation.sweep import sweep_table

    show(sweep_table(folder))
