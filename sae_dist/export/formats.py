"""The layouts in which a dictionary can be written and read; a run's own export has that of SAELens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.export import dictionary_learning, published, saelens, sparsify
from sae_dist.export.exported import ExportedSae, Latents


@dataclass(frozen=True)
class Format:
    """A layout of files for a finished dictionary.

    Attributes:
        folder: its folder within a run's `export`.
        files: the names of its files, config first.
        cannot_hold: returns why a dictionary cannot be written in it ("..., only ..."); None: it can.
        write: writes a dictionary into a folder.
        read: reads a dictionary from a folder.
    """

    folder: str
    files: tuple[str, str]
    cannot_hold: Callable[[ExportedSae], str | None]
    write: Callable[[Path, Latents], None]
    read: Callable[[Path], ExportedSae]


def _holds_all(head: ExportedSae) -> None:
    return None


FORMATS = {
    "saelens": Format(
        folder=".",
        files=(saelens.SAE_CONFIG, saelens.WEIGHTS),
        cannot_hold=_holds_all,
        write=saelens.export_saelens,
        read=published.load_published,
    ),
    "sparsify": Format(
        folder="sparsify",
        files=(sparsify.SAE_CONFIG, sparsify.WEIGHTS),
        cannot_hold=sparsify.cannot_hold,
        write=sparsify.export_sparsify,
        read=sparsify.load_sparsify,
    ),
    "dictionary_learning": Format(
        folder="dictionary_learning",
        files=(dictionary_learning.SAE_CONFIG, dictionary_learning.WEIGHTS),
        cannot_hold=dictionary_learning.cannot_hold,
        write=dictionary_learning.export_dictionary_learning,
        read=dictionary_learning.load_dictionary_learning,
    ),
}


def check_format(name: str, head: ExportedSae) -> None:
    """Check that a format can hold this dictionary.

    Raises:
        ConfigError: it cannot; the message names the formats that can.
    """
    reason = FORMATS[name].cannot_hold(head)
    if reason is not None:
        able = [other for other, each in FORMATS.items() if each.cannot_hold(head) is None]
        raise ConfigError(f"--format {name} cannot hold {reason}; use --format {' or '.join(able)}")


def format_of(folder: Path) -> str:
    """Return the format whose weights a folder contains.

    Raises:
        ConfigError: there is no such folder, or it contains the files of no format or of several.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give one with {_all_files()}")
    found = [name for name, each in FORMATS.items() if (folder / each.files[1]).is_file()]
    if len(found) != 1:
        several = "the files of several formats; choose one with --format"
        raise ConfigError(f"{folder} contains {several if found else f'none of {_all_files()}'}")
    return found[0]


def _all_files() -> str:
    return ", ".join(f"{each.files[1]} ({name})" for name, each in FORMATS.items())
