"""The place of an atlas, and what its manifest says."""

from pathlib import Path
from typing import Any

from sae_dist.atlas.schema import ATLAS, MANIFEST, MOST_PLACES, WORK
from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import parse_json, read_bounded, reading
from sae_dist.core.run_folder import EXPORT
from sae_dist.core.text import quoted

VERSION = 1
MOST_LATENTS = 1 << 32
COUNTS = {"num_latents": MOST_LATENTS, "tokens": MOST_PLACES, "kept": MOST_PLACES, "documents": MOST_PLACES}
"""Whole numbers of a manifest, and the greatest that each may be."""


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
        raise ConfigError(f"the atlas of {run} is not complete; go on with it: sae-dist atlas {quoted(run)}")
    raise ConfigError(f"{place} has no atlas; make one: sae-dist atlas {quoted(run)}")


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the manifest of an atlas.

    Raises:
        ConfigError: it is missing or damaged, or of another version.
    """
    path = folder / MANIFEST
    with reading(path, "is not the manifest of an atlas ({reason}); make the atlas again"):
        found = parse_json(read_bounded(path), unique=True)
        if not isinstance(found, dict):
            raise ValueError("it holds no keys")
        if found.get("version") != VERSION:
            raise ValueError(f"its version is {str(found.get('version'))[:20]}, and must be {VERSION}")
        for key, most in COUNTS.items():
            value = found[key]
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise ValueError(f"{key}={str(value)[:20]}, and must be from 0 to {most}")
        if found["num_latents"] < 1 or found["kept"] > found["tokens"]:
            raise ValueError("it has no latents, or keeps more tokens than there are")
    return found
