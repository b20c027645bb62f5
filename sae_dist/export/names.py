"""The formats of exports and the names of their files, known without torch."""

from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import EXPORT

FILES = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt"),
}
"""Format -> the names of its config and of its weights."""


def format_of(folder: Path) -> str:
    """Return the format whose weights a folder contains.

    Raises:
        ConfigError: there is no such folder, or it contains the files of no format or of several.
    """
    weights = {name: files[1] for name, files in FILES.items()}
    known = ", ".join(f"{file} ({name})" for name, file in weights.items())
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give one with {known}")
    found = [name for name, file in weights.items() if (folder / file).is_file()]
    if len(found) != 1:
        several = "the files of several formats; choose one with --format"
        raise ConfigError(f"{folder} contains {several if found else f'none of {known}'}")
    return found[0]


def start_folder(start: str) -> Path:
    """Return the folder of the export that training begins with.

    Args:
        start: `sae.start` as it is written, a run or an export.

    Raises:
        ConfigError: there is no such export.
    """
    config, weights = FILES["saelens"]
    folder = Path(start).expanduser()
    folder = folder / EXPORT if (folder / EXPORT / config).is_file() else folder
    if not (folder / config).is_file() or not (folder / weights).is_file():
        raise ConfigError(
            f"sae.start={start} has no {config} and {weights}; give a run that was exported, its "
            "export, or what sae-dist import made of another format"
        )
    return folder
