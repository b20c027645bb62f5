"""Exports the dictionaries of a grid as one set: in one folder, as each library reads one for every layer."""

import re
from collections.abc import Sequence
from pathlib import Path

from sae_dist.config.grid import member_folders, members
from sae_dist.config.run import Resolved, load_config
from sae_dist.config.trust import NOTHING, Granted
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG, EXPORT
from sae_dist.export.circuit_tracer import export_circuit_tracer, why_no_set
from sae_dist.export.exported import Latents
from sae_dist.export.formats import check_format, write
from sae_dist.train.export import open_latents

ONE_FILE_EACH = "circuit_tracer"
"""The format whose sets have the files of all layers in one folder; others have a folder for each."""
SHOWN = 4


def export_set(folder: Path, formats: Sequence[str], granted: Granted = NOTHING) -> list[Path]:
    """Write `folder`/export/FORMAT from the newest checkpoints of a grid's dictionaries; return the folders.

    Within are, of SAELens' and sparsify's, a folder for each place, named as it; of circuit-tracer's a file
    for each layer and one config.

    Args:
        formats: of `export.formats.FORMATS`.
        granted: see `config.trust`.

    Raises:
        ConfigError: the grid has several dictionaries of one place, one has no checkpoint yet, or a format
            cannot hold one of them, or not all of them together; nothing was written.
        CheckpointError: every checkpoint of one is damaged, or cannot be read.
        SaeDistError: the export could not be written.
    """
    cfg = load_config(folder / CONFIG, granted)
    dictionaries: dict[str, Latents] = {}
    for place, run in _one_for_each_place(cfg, folder).items():
        dictionaries[place] = open_latents(run, granted)
    for name in formats:
        for each in dictionaries.values():
            check_format(name, each.head)
        reason = why_no_set([each.head for each in dictionaries.values()]) if name == ONE_FILE_EACH else None
        if reason is not None:
            raise ConfigError(f"--format {name} cannot hold {reason}; use --format saelens")
    found = []
    for name in formats:
        found.append(folder / EXPORT / name)
        if name == ONE_FILE_EACH:
            export_circuit_tracer(found[-1], *dictionaries.values())
            continue
        for place, each in dictionaries.items():
            write(name, found[-1] / place, each)
    return found


def _one_for_each_place(cfg: Resolved, folder: Path) -> dict[str, Path]:
    """Return the folders of a grid's dictionaries by the places that they reconstruct, as folders are named.

    Raises:
        ConfigError: several reconstruct one place.
    """
    found: dict[str, list[Path]] = {}
    for member, each in zip(members(cfg), member_folders(cfg, folder), strict=True):
        place = str(member.target_hook or member.hook).removesuffix(":out")
        found.setdefault(re.sub(r"[^A-Za-z0-9._-]+", "_", place), []).append(each)
    for place, folders in found.items():
        if len(folders) > 1:
            more = f" and {len(folders) - SHOWN} more" if len(folders) > SHOWN else ""
            raise ConfigError(
                f"{folder} has {len(folders)} dictionaries for {place}, and a set has one; export each "
                f"alone: {', '.join(map(str, folders[:SHOWN]))}{more}"
            )
    return {place: folders[0] for place, folders in found.items()}
