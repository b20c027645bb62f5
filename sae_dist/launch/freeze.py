"""The run folder: made complete before the first rank starts, or found again."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.config.grid import single
from sae_dist.config.resolve import identity
from sae_dist.config.rules.checkpoint import checkpoint_bytes, most_checkpoints, weight_bytes
from sae_dist.config.run import Resolved, RunConfig, Single, load_config, save_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import replacing, write_json
from sae_dist.core.run_folder import (
    CHECKPOINTS,
    CONFIG,
    FINISHED,
    LATEST,
    PROVENANCE,
    SUMMARY,
    TRAINED,
    status,
)
from sae_dist.core.text import gib
from sae_dist.launch.provenance import provenance

MAY_CHANGE = "train_tokens (to more), metrics, checkpoint, topology, llm.shard*, llm.offload, llm.compile"
WORK = (f"{CHECKPOINTS}/step_*", f"*/{CHECKPOINTS}/step_*", "shards/*.tar")
SPARE_BYTES = 64 << 20
SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class FolderKind:
    """The purpose of a folder: a run, or an activation cache.

    Attributes:
        noun: what messages call it.
        config: the name of its frozen config.
        identity: returns the values of a resolved config that may not change.
        is_finished: returns whether nothing is left to do in the folder.
        space: given a config and the width of the rows, returns the bytes that it needs, what for, and how to
            need fewer.
    """

    noun: str
    config: str
    identity: Callable[[Resolved], dict[str, Any]]
    is_finished: Callable[[Path], bool]
    space: Callable[[Single, int], tuple[int, str, str]]


@dataclass(frozen=True)
class Frozen:
    """A run folder whose config is frozen.

    Attributes:
        finished: nothing is left to do in it.
        made: the folders that this command made for it, innermost first.
    """

    folder: Path
    finished: bool = False
    made: tuple[Path, ...] = ()

    def discard(self) -> None:
        """Remove what this command made, unless it holds checkpoints or shards already."""
        if any(any(self.folder.glob(pattern)) for pattern in WORK):
            return
        if self.made:
            shutil.rmtree(self.folder, ignore_errors=True)
        _remove_empty(self.made[1:])


def freeze(
    cfg: Resolved,
    width: int,
    kind: FolderKind | None = None,
    members: Sequence[Single] = (),
    widths: Sequence[int] = (),
) -> Frozen:
    """Make the folder of a resolved config, or find it.

    Args:
        width: D of the activations, D_in + D_out for a transcoder; from it follows the space that is needed.
        kind: None: a run.
        members: configs of a grid's dictionaries, which get folders of their own in it.
        widths: as `width`, for each of `members`.

    Raises:
        ConfigError: the folder belongs to another config or to something else, is unfinished without
            `resume=auto`, cannot be written, or has too little space.
    """
    kind = kind or RUN
    folder = Path(cfg.output).expanduser() / cfg.name
    try:
        if (folder / kind.config).is_file():
            return _reopen(cfg, folder, kind, members)
        _check_free(folder, kind)
        parts = zip(members, widths, strict=True) if members else [(single(cfg, folder), width)]
        spaces = [kind.space(each, columns) for each, columns in parts]
        _check_space(cfg, folder, kind.noun, (sum(each[0] for each in spaces), *spaces[0][1:]))
        return Frozen(folder, made=_write_new(cfg, folder, kind, members))
    except OSError as error:
        raise _cannot_write(cfg, error) from None


def check_place(cfg: RunConfig, kind: FolderKind | None = None) -> None:
    """Check that a folder can be made where a composed config wants it, or that one of its kind is there.

    Args:
        kind: None: a run.

    Raises:
        ConfigError: something else is in its place, or its parent is not a folder.
    """
    kind, parent = kind or RUN, Path(cfg.output).expanduser().absolute()
    try:
        if not next(each for each in (parent, *parent.parents) if each.exists()).is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        folder = Path(cfg.output).expanduser() / (cfg.name or "")
        if cfg.name and not (folder / kind.config).is_file():
            _check_free(folder, kind)
    except OSError as error:
        raise _cannot_write(cfg, error) from None


def _check_free(folder: Path, kind: FolderKind) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is no {kind.noun} folder; choose another name= or output=")


def _cannot_write(cfg: RunConfig, error: OSError) -> ConfigError:
    place = f"output={cfg.output}" + (f" with name={cfg.name}" if cfg.name else "")
    return ConfigError(
        f"{place} cannot be written: {error.strerror or error}; choose another output= or name="
    )


def continue_folder(
    folder: Path, configs: Iterable[tuple[Resolved, Path]], kind: FolderKind | None = None
) -> None:
    """Replace the frozen configs, and add this start to the folder's provenance.

    Raises:
        ConfigError: the folder cannot be read or written.
    """
    name = (kind or RUN).config
    try:
        for cfg, its in configs:
            with replacing(its / name) as temporary:
                save_config(cfg, temporary)
        starts = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        write_json(folder / PROVENANCE, {**starts, "resumed": [*starts.get("resumed", []), provenance()]})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be continued: {error}; choose another name=") from None


def is_finished(folder: Path) -> bool:
    """Return whether training and evaluation are done."""
    return status(folder) == FINISHED


def _reopen(cfg: Resolved, folder: Path, kind: FolderKind, members: Sequence[Single]) -> Frozen:
    begun = load_config(folder / kind.config)
    _check_same(kind.identity(begun), kind.identity(cfg), folder, kind)
    longer = kind is RUN and cfg.train_tokens != begun.train_tokens
    if kind.is_finished(folder) and not longer:
        return Frozen(folder, finished=True)
    if cfg.resume != "auto":
        what = f"was begun with train_tokens={begun.train_tokens}" if longer else "is unfinished"
        how = "it with resume=auto"
        if kind is RUN and not longer:
            what += f", at step {_newest_step(folder)} of {begun.train_tokens // begun.batch}"
            what = "is trained, and not evaluated yet" if status(folder) == TRAINED else what
            how = f"with sae-dist resume {folder}"
        raise ConfigError(f"{folder} {what}; continue {how}, or choose another name=")
    if cfg.train_tokens < begun.train_tokens:
        raise ConfigError(
            f"train_tokens={cfg.train_tokens} is less than the {begun.train_tokens} that {folder} was begun "
            "with; a run that goes on may become longer only: choose another name="
        )
    parts = [(cfg, folder), *((member, folder / member.name) for member in members)]
    continue_folder(folder, parts, kind)
    if longer:
        for _, its in parts:
            (its / SUMMARY).unlink(missing_ok=True)
    return Frozen(folder)


def _newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, the earliest of a grid's dictionaries; 0 without one."""
    files = [*folder.glob(f"{CHECKPOINTS}/{LATEST}"), *folder.glob(f"*/{CHECKPOINTS}/{LATEST}")]
    names = [each.read_text(encoding="utf-8").strip() for each in files]
    return min((int(name.removeprefix("step_")) for name in names), default=0)


def _check_same(begun: dict[str, Any], now: dict[str, Any], folder: Path, kind: FolderKind) -> None:
    """Refuse values that the folder was not begun with; a run's length is checked later."""
    free = ("train_tokens",) if kind is RUN else ()
    differing = [
        f"{key} is {there} there and {now[key]} here"
        for key, there in begun.items()
        if there != now[key] and key not in free
    ]
    if differing:
        more = len(differing) - SHOWN_DIFFERENCES
        shown = "; ".join(differing[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        may = f"; to go on with it, only these may change: {MAY_CHANGE}" if kind is RUN else ""
        raise ConfigError(
            f"{folder} belongs to another config ({shown}); choose another name= or output={may}"
        )


def _write_new(cfg: Resolved, folder: Path, kind: FolderKind, members: Sequence[Single]) -> tuple[Path, ...]:
    """Write a new folder, complete or absent, and return the folders made."""
    parents = [parent for parent in folder.parents if not parent.exists()]
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        save_config(cfg, temporary / kind.config)
        write_json(temporary / PROVENANCE, provenance())
        for member in members:
            (temporary / member.name).mkdir()
            save_config(member, temporary / member.name / kind.config)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(parents)
        raise
    return folder, *parents


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _run_space(cfg: Single, width: int) -> tuple[int, str, str]:
    """Return the bytes of all checkpoints (weights and two moments) and the export."""
    kept = most_checkpoints(cfg)
    needed = checkpoint_bytes(cfg, width) * kept + weight_bytes(cfg, width)
    return needed, f"{kept} checkpoints and the export", "lower checkpoint.keep"


RUN = FolderKind("run", CONFIG, identity, is_finished, _run_space)


def _check_space(cfg: Resolved, folder: Path, noun: str, space: tuple[int, str, str]) -> None:
    needed, what, fewer = space[0] + SPARE_BYTES, *space[1:]
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"output={cfg.output} has {gib(free)} free and this {noun} needs about {gib(needed)} for "
            f"{what}; make room, {fewer}, or choose another output="
        )
