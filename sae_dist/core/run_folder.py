"""The run folder: the names of what is in it, and how far its run is. No other file spells these names.

One dictionary has one folder. The folder of a grid holds CONFIG, PROVENANCE, SUMMARY, LOGS and a folder per
dictionary; the folder of a sweep holds run folders and its table.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json
from sae_dist.core.text import print_line

CONFIG = "config.yaml"  # frozen before the first rank starts; every rank reads it
DATA = "data_files.json"  # the files that the run reads: names, bytes, hashes; compared when it goes on
PROVENANCE = "provenance.json"  # commit, versions, hosts, command; of every start
WRITTEN = "written"  # in PROVENANCE: paths as they were written, by key; CONFIG holds them absolute
OWNER = ".owner"  # .owner.<n>: which process writes here now; absent when none does
JOB = "submit.sbatch"  # of a run on Slurm
LOGS = "logs"
METRICS = "metrics.jsonl"  # one JSON object per line
CHECKPOINTS = "checkpoints"  # step_<n>/, complete or absent
LATEST = "latest"  # in CHECKPOINTS: the name of the newest
EXPORT = "export"  # the dictionary as SAELens reads it; other formats in folders within
ATLAS = "atlas"  # every latent; its files: atlas.schema
ATLAS_MANIFEST = "atlas.json"  # in ATLAS, once it is complete
HUB = "hub"  # what is uploaded to the Hugging Face Hub
SUMMARY = "summary.json"  # results of training and of the evaluation at its end
EVALUATION = "eval.json"  # results of `sae-dist eval`
PLOTS = "plots"
REPORT = "report.html"
SWEEP_TABLE = "sweep.csv"
SWEEP_PLOT = "sweep.png"

IN_PLACE = ("*.*", f"{LOGS}/*", f"{PLOTS}/*", f"{HUB}/*", "wandb/*")
"""Files of a run that are written without being replaced as a whole."""

FINISHED, TRAINED, DIVERGED, IMPORTED = "finished", "trained", "diverged", "imported"
"""Values of `status` in SUMMARY: evaluated; not evaluated yet; given up; not trained here."""


def check_links(folder: Path) -> None:
    """Check that no file in a run folder which may be written over in its place is a link to elsewhere.

    A folder that somebody else made could hold one to any file of this machine. Links to folders are
    followed, since a person may keep checkpoints on another disk; a line on stderr says where they lead.

    Raises:
        ConfigError: one is.
    """
    home = folder.resolve()
    for pattern in (*IN_PLACE, *(f"*/{each}" for each in IN_PLACE)):
        for path in folder.glob(pattern):
            if path.is_symlink() and not path.is_dir() and not _target(path).is_relative_to(home):
                raise ConfigError(
                    f"{path} is a link to a file outside of the run folder, which would be written over; "
                    "remove the link"
                )
    for path in sorted({*folder.glob("*"), *folder.glob("*/*")}):
        if path.is_symlink() and path.is_dir() and not _target(path).is_relative_to(home):
            print_line(f"{path} is a link: what is written and removed there is in {_target(path)}")


def _target(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link to itself, before Python 3.13
        return Path("/")


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what SUMMARY holds; an empty dict if there is none yet.

    Raises:
        ConfigError: it is not JSON.
    """
    return read_json(folder / SUMMARY) or {}


def status(folder: Path, summary: Mapping[str, Any] | None = None) -> str:
    """Return how far a run is: finished, trained, diverged, imported, unfinished, not started, or missing.

    Args:
        summary: what SUMMARY holds, if it was read already.
    """
    if not folder.is_dir():
        return "missing"
    if summary is None:
        with suppress(ConfigError):  # damaged: how far the run was is not known any more
            summary = read_summary(folder)
    found = (summary or {}).get("status")
    return found or ("unfinished" if (folder / METRICS).exists() else "not started")
