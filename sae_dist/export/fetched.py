"""A dictionary's files from the Hugging Face Hub, in the local cache."""

from collections.abc import Sequence
from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.core.hub import UNREACHABLE, hub_answers, is_offline, network_errors
from sae_dist.core.sums import LIST
from sae_dist.core.text import first_line
from sae_dist.export.names import FILES, format_of

BEST = "saelens"
"""The folder of a repository that `sae-dist export --push` made from which its dictionary is read."""


def fetched(name: str) -> Path:
    """Download a dictionary, or find it in the local cache; return the folder with its files.

    Args:
        name: `organisation/name`, or a folder in it, `organisation/name/folder`.

    Raises:
        ConfigError: there is no such repository or folder, or the Hub cannot be reached.
    """
    repo, within = _parts(name)
    root = _snapshot(name, repo, _patterns(within))
    folder = Path(root, within)
    if not folder.exists():
        raise ConfigError(f"{name}: the repository {repo} has no {within}; look at its files on the Hub")
    if not within and (folder / BEST / FILES[BEST][1]).exists():
        return folder / BEST
    format_of(folder)
    return folder


def fetched_set(name: str) -> list[Path]:
    """Download the dictionaries of a set, or find them in the local cache; return the places they are at.

    Args:
        name: `organisation/name`, or files or folders in it, `organisation/name/transcoders/*_16k`: those
            named, and the folders directly in them.

    Raises:
        ConfigError: there is no such repository or folder, or the Hub cannot be reached.
    """
    repo, within = _parts(name)
    files = [file for each in FILES.values() for file in each]
    files += [f"{file}{LIST}" for file in files]
    inside = [f"{within}/" if within else "", f"{within}/*/" if within else "*/"]
    patterns = [f"{folder}{file}" for folder in inside for file in files]
    root = _snapshot(name, repo, patterns + ([within] if within else []))
    if not within:
        return [root]
    found = sorted(root.glob(within))
    if not found:
        raise ConfigError(f"{name}: the repository {repo} has no {within}; look at its files on the Hub")
    return found


def _parts(name: str) -> tuple[str, str]:
    """Return the repository, and the folder in it, of a name.

    Raises:
        ConfigError: it is no name of a repository.
    """
    parts = [part for part in name.removeprefix("hf://").split("/") if part]
    if name.startswith(("/", ".", "~")) or len(parts) < 2 or ".." in parts:
        raise ConfigError(
            f"{name} does not exist; give a run folder, an export, a folder that sae-dist import reads, or "
            "organisation/name of the Hugging Face Hub"
        )
    return "/".join(parts[:2]), "/".join(parts[2:])


def _snapshot(name: str, repo: str, patterns: Sequence[str]) -> Path:
    """Download the files of a repository that match, or find them in the local cache; return their folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    local = is_offline() or not hub_answers()
    refused: tuple[type[Exception], ...] = (HFValidationError, *network_errors())
    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns), local_files_only=local))
    except refused as error:
        why = "HF_HUB_OFFLINE is set" if is_offline() else UNREACHABLE if local else first_line(error)
        raise ConfigError(
            f"{name} is neither a folder here nor a repository of the Hugging Face Hub that can be read: "
            f"{why}"
        ) from None


def _patterns(within: str) -> list[str]:
    """Return which files of a repository are needed: a folder's, or those of a dictionary at its top."""
    if within:
        return [within, f"{within}/*"]
    names = [name for files in FILES.values() for name in files]
    best = [f"{BEST}/{name}" for name in (*FILES[BEST], "*.safetensors", f"*{LIST}")]
    return [*names, *(f"{name}{LIST}" for name in names), *best]
