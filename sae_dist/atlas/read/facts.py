"""The place of an atlas, and what its manifest says."""

import dataclasses
from pathlib import Path
from typing import Any

from sae_dist.atlas.manifest import read_manifest
from sae_dist.atlas.schema import MANIFEST, MOST_PLACES, WORK
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import ATLAS, EXPORT
from sae_dist.core.text import quoted

MOST_LATENTS = 1 << 32


def atlas_folder(where: str | Path) -> Path:
    """Return the folder of an atlas.

    Args:
        where: the folder itself, a run folder with an atlas, or the export of such a run.

    Raises:
        ConfigError: there is none, or it is not complete.
    """
    place = Path(where).expanduser()
    run = place.parent if place.name == EXPORT else place
    for folder in (place, place / ATLAS, run / ATLAS):
        if (folder / MANIFEST).is_file():
            return folder
    if not place.is_dir():
        raise ConfigError(f"{place} does not exist; give a run with an atlas")
    if any((folder / WORK).is_dir() for folder in (place, run / ATLAS)):
        raise ConfigError(
            f"the atlas of {run} is unfinished; go on with it: sae-dist atlas {quoted(run)} resume=auto"
        )
    raise ConfigError(f"{place} has no atlas; make one: sae-dist atlas {quoted(run)}")


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the manifest of an atlas, whose numbers can be true.

    Raises:
        ConfigError: it is missing or damaged, or of another version.
    """
    found = read_manifest(folder)
    true = 0 < found.num_latents <= MOST_LATENTS and found.kept <= found.tokens <= MOST_PLACES
    if not true:
        raise ConfigError(
            f"{folder / MANIFEST} is damaged: num_latents={found.num_latents}, tokens={found.tokens} and "
            f"kept={found.kept} cannot be; make the atlas again"
        )
    return dataclasses.asdict(found)
