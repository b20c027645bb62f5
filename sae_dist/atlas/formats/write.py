"""Hands an atlas on in the formats of other tools: which there are, and what a folder for them must be."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from sae_dist.atlas.formats.circuit_tracer import write_circuit_tracer
from sae_dist.atlas.formats.delphi import write_delphi
from sae_dist.atlas.formats.names import Names, names_of
from sae_dist.atlas.formats.neuronpedia import write_neuronpedia
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import TEMPORARY

Writer = Callable[[Atlas, Names, Path, list[int]], None]
FORMATS: dict[str, Writer] = {
    "neuronpedia": write_neuronpedia,
    "circuit_tracer": write_circuit_tracer,
    "delphi": write_delphi,
}
"""Formats by name. A writer is given the atlas, the names of its model and hook, a folder, and latents."""


def write_format(
    where: Path | Atlas, name: str, out: Path | None = None, latents: Iterable[int] | None = None
) -> Path:
    """Write an atlas in another tool's format; return the folder, which is complete or absent.

    Args:
        where: the atlas, or its folder, or the folder of its run.
        out: a new folder; None: one named as the format, in the atlas.
        latents: those to hand on; None: all.

    Raises:
        ConfigError: the format is unknown, the folder is there already, there is no such latent or atlas, or
            tokens have no text here, which the format needs.
    """
    check_format(name)
    atlas = where if isinstance(where, Atlas) else Atlas.open(where)
    out = out or atlas.folder / name
    chosen = (
        list(range(atlas.num_latents)) if latents is None else sorted({atlas.checked(n) for n in latents})
    )
    if not chosen:
        raise ConfigError("no latent is chosen; name at least one, or leave the choice out for all")
    check_new(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}{TEMPORARY}")
    try:
        temporary.mkdir(parents=True)
        FORMATS[name](atlas, names_of(atlas), temporary, chosen)
        if out.is_dir():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def check_format(name: str) -> None:
    """Check that a format is one of those that there are.

    Raises:
        ConfigError: it is not.
    """
    if name not in FORMATS:
        raise ConfigError(f"format={name[:40]} is unknown; the formats are {', '.join(FORMATS)}")


def check_new(out: Path) -> None:
    """Check that a folder is there to be made.

    Raises:
        ConfigError: it holds something already, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already; remove it, or give another folder")
