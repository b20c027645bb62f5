"""The identity of a run's data: what a run was begun with, kept in its folder, and compared when it goes on.

A lane's place in its text is a number of a document, and whether a document is held out follows from all of
them. So if the files of a text change between two starts of a run, it would read other documents, and
evaluate on rows that it was trained on.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sae_dist.config.run import Resolved
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.core.parsing import parse_json, read_bounded, reading
from sae_dist.core.run_folder import DATA
from sae_dist.core.text import print_line

Identity = dict[str, list[int | str]]
"""By name of a file, its bytes and a hash of samples of its content."""
SAMPLE_BYTES = 16384
SAMPLES = 8
SHOWN = 3
MOST_BYTES = 1 << 30
"""The largest identity that is read: a line for each of many files."""


def write_identity(data: Identity | None, folder: Path) -> None:
    """Write the identity of a run's data into its folder; no file for data that are made, not read."""
    if data:
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(each)}" for name, each in data.items())
        write_text(folder / DATA, f"{{\n{lines}\n}}\n")


def check_identity(now: Identity | None, folder: Path) -> None:
    """Check that the data are those which a run was begun with.

    A folder without them, of an older version or because they were removed, gets those of now. Without a
    network the files of a dataset of the Hub cannot be listed: nothing is compared.

    Raises:
        ConfigError: they are not; the message names what changed, and the ways on.
    """
    file = folder / DATA
    if not file.is_file():
        write_identity(now, folder)
        return
    if not now:
        return
    changes = differences(file, now)
    if changes:
        raise ConfigError(
            f"{folder} was begun with other data: {changes}. It would go on with other documents, and "
            "evaluate on some that it was trained on: put the data back, or begin a new run with name=, or "
            f"remove {file} to go on with the data as they are"
        )


def caution(cfg: Resolved, folder: Path) -> None:
    """Print a line if a run is about to be evaluated on other data than it was trained on.

    Args:
        folder: of the run, or of a dictionary of a grid's.

    Raises:
        ConfigError: the data are gone.
    """
    file = next((each / DATA for each in (folder, folder.parent) if (each / DATA).is_file()), None)
    # A cache is read in training only.
    if file is None or cfg.reads_cache or not (now := identity_of(cfg)):
        return
    if changes := differences(file, now):
        print_line(
            f"caution: {folder} was trained on other data: {changes}; what is held out now may have been "
            "trained on"
        )


def differences(file: Path, now: Identity) -> str:
    """Say how data differ from those whose identity a file holds; "" if they do not.

    Raises:
        ConfigError: the file is damaged.
    """
    with reading(file, "cannot be read ({reason}); remove it to go on without this check"):
        begun: Identity = dict(parse_json(read_bounded(file, MOST_BYTES)))
    changes = [
        in_words("changed", (name for name in begun if name in now and now[name] != begun[name])),
        in_words("missing", (name for name in begun if name not in now)),
        in_words("new", (name for name in now if name not in begun)),
    ]
    return "; ".join(filter(None, changes))


def in_words(what: str, names: Iterable[str]) -> str:
    """Say how many files changed in a way, and name the first; "" if none did."""
    listed = list(names)
    shown = ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
    return f"{len(listed)} {what} ({shown})" if listed else ""


def source_of(cfg: Resolved) -> str:
    """Return the key and value that name a run's data."""
    if not cfg.runs_llm:
        return f"activations.path={cfg.activations.path}"
    if cfg.tokens.kind == "hf":
        return f"tokens.dataset={cfg.tokens.dataset}"
    return f"tokens.path={cfg.tokens.path}"


def identity_of(cfg: Resolved) -> Identity:
    """Return the identity of the data that a run reads, {} if it makes them."""
    if cfg.is_synthetic:
        return {}
    if cfg.reads_cache:
        from sae_dist.transport.cache_manifest import read_manifest

        shards = read_manifest(cfg.activations.source_path).shards
        return {shard.name: [shard.bytes, shard.sha256[:16]] for shard in shards}
    if cfg.reads_file:
        from sae_dist.transport.array_file import find_arrays

        return samples([each.path for each in find_arrays(cfg.activations.source_path, cfg.activations.key)])
    tokens = cfg.tokens
    if tokens.kind == "text" and not tokens.path:
        return {"Python's own text": python_text()}
    if tokens.kind == "hf":
        from sae_dist.tokens.hf import identity_of_dataset
        from sae_dist.tokens.hf_files import local_files

        return samples(local_files(tokens)) or dict(identity_of_dataset(tokens))
    if tokens.kind == "text":
        from sae_dist.tokens.text_files import text_files

        path = Path(tokens.path or "").expanduser()
        return samples(text_files(path, source_of(cfg), say_links=True), path if path.is_dir() else None)
    from sae_dist.tokens.shards import expand

    return samples(expand(tokens.path or "", source_of(cfg)))


def samples(files: Sequence[Path], root: Path | None = None) -> Identity:
    """Return the identity of files, by their names below `root`; None: below the folder that all are in."""
    if not files:
        return {}
    above = root or Path(os.path.commonpath([each.parent for each in files]))
    return {each.relative_to(above).as_posix(): sample_of(each) for each in files}


def sample_of(path: Path) -> list[int | str]:
    """Return a file's bytes, and a hash of SAMPLES parts spread over it, its head and its tail among them."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for number in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return [size, digest.hexdigest()[:16]]


def python_text() -> list[int | str]:
    """Return the bytes of the text that this Python brings, and a hash of its documents' names and sizes."""
    from sae_dist.tokens.documents import python_documents

    found = [(each.key, each.end - each.start) for each in python_documents()]
    text = json.dumps(found)
    return [sum(size for _, size in found), hashlib.sha256(text.encode()).hexdigest()[:16]]
