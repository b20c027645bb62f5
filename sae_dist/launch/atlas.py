"""The steps of `sae-dist atlas`: what is asked for -> checks -> the folder -> ranks -> what there is now."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_dist.config.atlas import (
    ASKED,
    HELD_OUT,
    TRAINING,
    atlas_of,
    checked,
    for_atlas,
    keys,
    read_asked,
    written,
)
from sae_dist.config.plain import read_yaml, write_yaml
from sae_dist.config.run import Resolved, Single, granted_config
from sae_dist.config.trust import LLM, Granted, runs_a_command
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.core.owner import claim, refuse_owned
from sae_dist.core.private import as_private_as
from sae_dist.core.run_folder import ATLAS as FOLDER
from sae_dist.core.run_folder import ATLAS_MANIFEST, CONFIG, EXPORT, check_links
from sae_dist.core.text import check_plain, print_line, quoted, show
from sae_dist.launch.freeze import Frozen
from sae_dist.launch.settle import check_devices
from sae_dist.launch.start import Role, start


def atlas_command(folder: Path, words: list[str], granted: Granted) -> None:
    """Make the atlas of a run, or go on with it.

    Args:
        words: key=value.

    Raises:
        SaeDistError: see `core.errors`; wrong input leaves nothing behind.
    """
    values, resume = _values(words)
    start(lambda world: _prepare(folder, values, resume, granted, world), ATLAS, _tell, lambda: granted)


def _values(words: list[str]) -> tuple[dict[str, Any], bool]:
    """Return what is asked for by key, and whether to go on with what is unfinished."""
    kinds, values = keys(), dict[str, Any]()
    for word in words:
        key, _, value = word.partition("=")
        try:
            values[key] = value if kinds.get(key, str) is str else read_yaml(value)
        except ValueError as error:
            raise ConfigError(f"{word}: {error}") from None
    resume = values.pop("resume", "never")
    if resume not in ("auto", "never"):
        raise ConfigError(f"resume={resume} is not one of auto, never")
    text = values.get("atlas.text", HELD_OUT)
    if text not in (HELD_OUT, TRAINING):
        if runs_a_command(text):
            raise ConfigError(f"atlas.text={text} is none of {HELD_OUT}, {TRAINING}, or a file or folder")
        check_plain(text, "atlas.text")
        values["atlas.text"] = str(Path(text).expanduser().absolute())
    return checked(values), resume == "auto"


def _prepare(
    folder: Path, values: Mapping[str, Any], resume: bool, granted: Granted, world: int | None
) -> Frozen:
    """Check everything that can be checked before a process starts, then make the atlas's folder.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    run = granted_config(folder / CONFIG, granted, LLM)
    _check_run(run, folder, values, world)
    place = folder / FOLDER
    check_links(folder)
    if (place / ATLAS_MANIFEST).is_file():
        from sae_dist.atlas.manifest import check_files, read_manifest

        _check_same(place, values)
        check_files(place, read_manifest(place))
        show(f"{place} is there, and its files are what was written: {_use(folder)}")
        return Frozen(place, finished=True)
    if (place / ASKED).is_file():
        return _continue(place, values, resume, granted)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{place} exists and is no atlas; move it away")
    owner = None
    try:
        place.mkdir(exist_ok=True)
        with as_private_as(folder):
            owner = claim(place, "read for")
            write_text(place / ASKED, write_yaml(written(values)))
    except OSError as error:
        if owner is not None:
            owner.release()
        shutil.rmtree(place, ignore_errors=True)
        raise ConfigError(f"{place} cannot be written: {error.strerror or error}") from None
    return Frozen(place, made=(place,), owner=owner, granted=granted)


def _continue(place: Path, values: Mapping[str, Any], resume: bool, granted: Granted) -> Frozen:
    from sae_dist.atlas.progress import Done
    from sae_dist.atlas.windows import remove_windows

    _check_same(place, values)
    if not resume:
        refuse_owned(place)
        raise ConfigError(f"{place} is unfinished; continue it with resume=auto, or remove it")
    owner = claim(place, "read for")
    try:
        remove_windows(place, Done.of(place).windows)
        write_text(place / ASKED, write_yaml(written(read_asked(place) | dict(values))))
    except BaseException:
        owner.release()
        raise
    return Frozen(place, owner=owner, granted=granted)


def _check_same(place: Path, values: Mapping[str, Any]) -> None:
    """Refuse to make another atlas where there is one, or the beginning of one."""
    there = written(read_asked(place))
    differing = [
        f"{key} is {there[key]} there and {value} here"
        for key, value in values.items()
        if key.startswith("atlas.") and there[key] != value
    ]
    if differing:
        raise ConfigError(
            f"{place} is another atlas ({'; '.join(differing)}); remove it, or ask for the same"
        )


def _check_run(run: Resolved, folder: Path, values: Mapping[str, Any], world: int | None) -> None:
    """Check that a run can be read so.

    Raises:
        ConfigError: the run has no text or no export, or its latents cannot be shared out so.
    """
    if run.is_grid or not isinstance(run, Single):
        from sae_dist.config.grid import member_folders

        inside = [str(each) for each in member_folders(run, folder)]
        raise ConfigError(f"{folder} is a grid; give one of its runs, such as {inside[0]}")
    if not run.has_llm:
        raise ConfigError(
            f"activations.kind={run.activations.kind}: {folder} was trained on rows without text, and an "
            "atlas is of text"
        )
    from sae_dist.export.saelens import open_exported

    sae = open_exported(folder / EXPORT)
    cfg, atlas = for_atlas(run, values), atlas_of(values)
    topology = cfg.topology
    for key in ("shard", "dp", "producers", "in_flight"):
        low = 0 if key == "producers" else 1
        if getattr(topology, key) < low:
            raise ConfigError(f"topology.{key}={getattr(topology, key)} must be at least {low}")
    if sae.num_latents % topology.shard:
        raise ConfigError(
            f"topology.shard={topology.shard} does not divide the {sae.num_latents} latents; use a divisor"
        )
    if run.llm.shard != "none" and not topology.producers:
        print_line(
            f"llm.shard={run.llm.shard} is left out: without topology.producers each rank holds the model"
        )
    ranks = ranks_of(cfg)
    if world not in (None, ranks):
        raise ConfigError(
            f"WORLD_SIZE={world} does not match topology: producers and shard * dp make {ranks} ranks"
        )
    if atlas.text not in (HELD_OUT, TRAINING) and cfg.tokens.kind == "text" and not Path(atlas.text).exists():
        raise ConfigError(
            f"atlas.text={atlas.text} does not exist; give a file or folder of text, or tar files"
        )
    check_devices(cfg, world)


def ranks_of(cfg: Single) -> int:
    """Return the number of ranks of a pass."""
    topology = cfg.topology
    return topology.shard * topology.dp + topology.producers * cfg.llm.shard_size


def _count(place: Path) -> int:
    from sae_dist.config.grid import single
    from sae_dist.config.run import load_config

    run = single(load_config(place.parent / CONFIG), place.parent)
    return ranks_of(for_atlas(run, read_asked(place)))


def _work(place: Path, granted: Granted) -> None:
    from sae_dist.train.atlas.rank import atlas_rank

    atlas_rank(place, granted)


ATLAS = Role("atlas", _count, _work)


def _tell(place: Path, _granted: Granted) -> None:
    """Print what there is now, and what to do with it."""
    from sae_dist.atlas.manifest import read_manifest

    found = read_manifest(place)
    size = sum(path.stat().st_size for path in place.rglob("*.parquet"))
    show(
        f"{os.path.relpath(place)}\n{found.kept:,} activations of {found.documents:,} documents, "
        f"{found.num_latents:,} latents: {found.silent:,} silent, {found.too_rare:,} more that fired fewer "
        f"than {found.few} times; {found.postings:,} codes, {size / 2**20:,.1f} MiB\n{_use(place.parent)}"
    )


def _use(run: Path) -> str:
    where = quoted(os.path.relpath(run))
    return f'search it: sae-dist find {where} "a word"; look at it: sae-dist serve {where}'
