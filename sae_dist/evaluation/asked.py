"""Checks of what `sae-dist eval` is asked for that need no torch."""

from pathlib import Path

from sae_dist.config.grid import single
from sae_dist.config.run import Resolved, Single
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import EXPORT
from sae_dist.core.text import quoted
from sae_dist.export.names import FILES
from sae_dist.tokens.text_files import text_files

PYTHON = "python"
"""The value of `eval.probes` for which texts and labels are made from Python's own sources."""


def check_files(folder: Path, asked: Resolved) -> Single:
    """Check that a run's export and the files that `eval` names are there, and return the config of one run.

    Raises:
        ConfigError: a file is missing, or the folder is a grid's.
    """
    cfg = single(asked, folder)
    if not (folder / EXPORT / FILES["saelens"][0]).exists():
        raise ConfigError(
            f"{folder} has no export yet; write one of its newest checkpoint with "
            f"sae-dist export {quoted(folder)}, or finish the run with sae-dist resume {quoted(folder)}"
        )
    if cfg.eval.corpus and cfg.has_llm:
        text_files(Path(cfg.eval.corpus).expanduser(), f"eval.corpus={cfg.eval.corpus}")
    if cfg.eval.probes not in (None, "", PYTHON):
        labelled_file(cfg.eval.probes)
    return cfg


def labelled_file(path: str | None) -> Path:
    """Return the .jsonl file of texts and labels that `eval.probes` names.

    Raises:
        ConfigError: there is no such file.
    """
    file = Path(path or "").expanduser()
    if not file.is_file():
        raise ConfigError(
            f"eval.probes={path} does not exist; give a .jsonl file of text and label, or python"
        )
    return file
