"""The run folder: made complete before the first rank starts, or found again."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_dist.config.grid import single
from sae_dist.config.paths import with_absolute_paths
from sae_dist.config.run import Resolved, RunConfig, Single, recorded_config, save_config
from sae_dist.config.trust import Granted
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json, replacing, write_json
from sae_dist.core.owner import Owner, claim, refuse_owned
from sae_dist.core.private import as_private_as
from sae_dist.core.run_folder import CHECKPOINTS, LATEST, PROVENANCE, SUMMARY, TRAINED, WRITTEN, status
from sae_dist.core.text import check_plain, quoted
from sae_dist.launch.folder_kind import RUN, FolderKind, check_space
from sae_dist.launch.identity import Identity, check_identity, write_identity
from sae_dist.launch.provenance import provenance

MAY_CHANGE = "train_tokens (to more), metrics, checkpoint, topology, llm.shard*, llm.offload, llm.compile"
WORK = (f"{CHECKPOINTS}/step_*", f"*/{CHECKPOINTS}/step_*", "shards/*.tar")
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class Frozen:
    """A run folder whose config is frozen, and which this process owns until `release`.

    Attributes:
        finished: nothing is left to do in it.
        made: the folders that this command made for it, innermost first.
        owner: None: nothing is left to do, or another rank is the owner.
        granted: values of its config that run code, which the command grants; see `config.trust`.
    """

    folder: Path
    finished: bool = False
    made: tuple[Path, ...] = ()
    owner: Owner | None = None
    granted: Granted = field(default_factory=dict)

    def release(self) -> None:
        """Give the folder up: nothing more will be written."""
        if self.owner is not None:
            self.owner.release()

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
    data: Identity | None = None,
) -> Frozen:
    """Make the folder of a resolved config, or find it, and become its owner.

    Args:
        width: D of the activations, D_in + D_out for a transcoder; from it follows the space that is needed.
        kind: None: a run.
        members: configs of a grid's dictionaries, which get folders of their own in it.
        widths: as `width`, for each of `members`.
        data: identity of what it reads; None: nothing that could change.

    Raises:
        ConfigError: the folder belongs to another config, other data or to something else, has another owner,
            is unfinished without `resume=auto`, cannot be written, or has too little space.
    """
    kind = kind or RUN
    folder = Path(cfg.output).expanduser() / cfg.name
    check_plain(str(folder.absolute()), "output")
    written: dict[str, Any] = {}
    if kind is RUN:
        cfg, written = with_absolute_paths(cfg)
        members = [with_absolute_paths(each)[0] for each in members]
    try:
        if (folder / kind.config).is_file():
            return _reopen(cfg, folder, kind, members, data)
        _check_free(folder, kind)
        parts = zip(members, widths, strict=True) if members else [(single(cfg, folder), width)]
        spaces = [kind.space(each, columns) for each, columns in parts]
        check_space(cfg, folder, kind.noun, (sum(each[0] for each in spaces), *spaces[0][1:]))
        try:
            return _write_new(cfg, folder, kind, members, written, data)
        except OSError as error:
            # Another command was faster, with the same folder.
            if error.errno not in TAKEN or not (folder / kind.config).is_file():
                raise
        return _reopen(cfg, folder, kind, members, data)
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
        starts = read_json(folder / PROVENANCE) or {}
        write_json(folder / PROVENANCE, {**starts, "resumed": [*starts.get("resumed", []), provenance()]})
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder} cannot be continued: {error}; choose another name=") from None


def _reopen(
    cfg: Resolved, folder: Path, kind: FolderKind, members: Sequence[Single], data: Identity | None
) -> Frozen:
    if _stands(cfg, folder, kind):
        return Frozen(folder, finished=True)
    if cfg.resume != "auto":
        refuse_owned(folder)
        raise ConfigError(_needs_resume(cfg, folder, kind))
    owner = claim(folder, kind.doing)
    try:
        # As it is now that nobody else writes.
        if _stands(cfg, folder, kind):
            owner.release()
            return Frozen(folder, finished=True)
        _continue(cfg, folder, kind, members, data)
        if cfg.private:
            folder.chmod(0o700)
    except BaseException:
        owner.release()
        raise
    return Frozen(folder, owner=owner)


def _stands(cfg: Resolved, folder: Path, kind: FolderKind) -> bool:
    """Check that a folder was begun with this config, and return whether nothing is left to do in it."""
    begun = recorded_config(folder / kind.config)
    same = with_absolute_paths(begun)[0] if kind is RUN else begun
    _check_same(kind.identity(same), kind.identity(cfg), folder, kind)
    return kind.is_finished(folder) and not (kind is RUN and cfg.train_tokens != begun.train_tokens)


def _needs_resume(cfg: Resolved, folder: Path, kind: FolderKind) -> str:
    begun = recorded_config(folder / kind.config)
    what, how = "is unfinished", "it with resume=auto"
    if kind is RUN and cfg.train_tokens != begun.train_tokens:
        what = f"was begun with train_tokens={begun.train_tokens}"
    elif kind is RUN:
        what += f", at step {_newest_step(folder)} of {begun.train_tokens // begun.batch}"
        what = "is trained, and not evaluated yet" if status(folder) == TRAINED else what
        how = f"with sae-dist resume {quoted(folder)}"
    return f"{folder} {what}; continue {how}, or choose another name="


def _continue(
    cfg: Resolved, folder: Path, kind: FolderKind, members: Sequence[Single], data: Identity | None
) -> None:
    begun = recorded_config(folder / kind.config)
    if cfg.train_tokens < begun.train_tokens:
        raise ConfigError(
            f"train_tokens={cfg.train_tokens} is less than the {begun.train_tokens} that {folder} was begun "
            "with; a run that goes on may become longer only: choose another name="
        )
    check_identity(data, folder)
    parts = [(cfg, folder), *((member, folder / member.name) for member in members)]
    continue_folder(folder, parts, kind)
    if kind is RUN and cfg.train_tokens != begun.train_tokens:
        for _, its in parts:
            (its / SUMMARY).unlink(missing_ok=True)


def _newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, the earliest of a grid's dictionaries; 0 without one."""
    files = [*folder.glob(f"{CHECKPOINTS}/{LATEST}"), *folder.glob(f"*/{CHECKPOINTS}/{LATEST}")]
    names = [each.read_text(encoding="utf-8").strip() for each in files]
    found = (re.fullmatch(r"step_(\d{1,18})", name) for name in names)
    return min((int(each[1]) if each else 0 for each in found), default=0)


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


def _write_new(
    cfg: Resolved,
    folder: Path,
    kind: FolderKind,
    members: Sequence[Single],
    written: dict[str, Any],
    data: Identity | None,
) -> Frozen:
    """Write a new folder, complete or absent, and owned from its beginning."""
    parents = [parent for parent in folder.parents if not parent.exists()]
    # The number of a process may be another's on another host.
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    owner = None
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700 if cfg.private else 0o777)
        with as_private_as(temporary):
            owner = claim(temporary, kind.doing)
            save_config(cfg, temporary / kind.config)
            write_json(temporary / PROVENANCE, provenance() | ({WRITTEN: written} if written else {}))
            write_identity(data, temporary)
            for member in members:
                (temporary / member.name).mkdir()
                save_config(member, temporary / member.name / kind.config)
        os.rename(temporary, folder)
    except BaseException:
        if owner is not None:
            owner.release()
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(parents)
        raise
    owner.moved(folder)
    return Frozen(folder, made=(folder, *parents), owner=owner)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
