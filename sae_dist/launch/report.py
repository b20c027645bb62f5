"""`sae-dist report`: the page of one dictionary, or of many."""

from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG


def report_command(folder: Path) -> None:
    """Write the page of a run, a grid or a sweep, and print where it is.

    A run that is unfinished, or has no export, is exported as it stands; those of a grid or a sweep are not.

    Raises:
        ConfigError: the folder is none of them, or a file in it is not what it should be.
    """
    from sae_dist.evaluation.sweep import runs_of

    if runs := runs_of(folder):
        from sae_dist.evaluation.report.many import report_many

        print(report_many(folder, runs))
        return
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} is not a run folder, nor a grid's or a sweep's: no {CONFIG} in it or in a folder of it"
        )
    from sae_dist.evaluation.report.page import needs_export, report_run

    if needs_export(folder):
        from sae_dist.train.export import export_run

        export_run(folder)
    print(report_run(folder))
