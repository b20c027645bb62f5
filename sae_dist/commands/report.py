"""The command `sae-dist report`: the page of one dictionary, or of many."""

from sae_dist.commands.arguments import one_folder
from sae_dist.config.grid import run_of
from sae_dist.config.run import granted_config
from sae_dist.config.trust import LLM, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.owner import owning
from sae_dist.core.run_folder import CONFIG
from sae_dist.core.text import show


def help_text() -> str:
    """Return the help text."""
    return """\
Writes FOLDER/report.html: one file without scripts that fetches nothing, for light and dark screens of any
size.

Of a run: what was trained, warnings, curves, results, speed, and thirty latents in context. It loads the
language model and reads as many held-out tokens as the evaluation.

Of a grid (grid.k=[16,32]) or of a sweep (train -m): a row for each dictionary, FVU against L0, all curves in
one figure, results, speed and cost, a grid's seeds, the warnings of all, and links to the single-run reports
that exist. It only reads files, so it takes seconds.

llm.trust_remote_code=true runs the code that a run's model brings along; a run folder does not grant it.

Examples:
  sae-dist report outputs/my_run
  sae-dist report outputs/my_grid
  sae-dist report 'outputs/my_grid/num_latents=4096,k=32'
"""


def run(arguments: list[str]) -> None:
    """Write the page of a run, a grid or a sweep, and print where it is.

    A run that is unfinished, or has no export, is exported as it stands; those of a grid or a sweep are not.

    Raises:
        ConfigError: the folder is none of them, or a file in it is not what it should be.
    """
    arguments, granted = granted_by(arguments)
    folder = one_folder(arguments, "report", "one folder of a run, a grid or a sweep, such as outputs/my_run")
    from sae_dist.evaluation.sweep import runs_of

    if runs := runs_of(folder):
        from sae_dist.evaluation.report.many import report_many

        show(report_many(folder, runs))
        return
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} is not a run folder, nor a grid's or a sweep's: no {CONFIG} in it or in a folder of it"
        )
    granted_config(folder / CONFIG, granted, LLM)
    from sae_dist.evaluation.report.page import needs_export, report_run

    with owning(run_of(folder), "reported on"):
        if needs_export(folder):
            from sae_dist.train.export import export_run

            export_run(folder, granted=granted)
        show(report_run(folder, granted))
