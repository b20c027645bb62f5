"""The run folder: made once, by one process, before any rank starts."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from sae_dist.core.config import RunConfig, load_config, save_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.resolve import differences

LIBRARIES = ("sae-dist", "torch", "transformers", "hydra-core", "safetensors", "datasets", "webdataset", "wandb")
SPARE_BYTES = 64 << 20


def folder_of(cfg: RunConfig) -> Path:
    """Where the run of a resolved config lives."""
    assert cfg.name is not None
    return Path(cfg.output) / cfg.name


def status(folder: Path) -> str:
    """`absent`, `unfinished`, or `finished` (trained, exported and evaluated)."""
    if not (folder / "config.yaml").exists():
        return "absent"
    summary = folder / "summary.json"
    finished = summary.exists() and json.loads(summary.read_text()).get("status") == "finished"
    return "finished" if finished else "unfinished"


def check_folder(cfg: RunConfig) -> str:
    """Whether the run may be started in its folder; returns `status`.

    Raises:
        ConfigError: the folder belongs to another config, is not a run folder, holds an unfinished run
            without resume=auto, or cannot be written.
    """
    folder = folder_of(cfg)
    found = status(folder)
    if found == "absent":
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"name={cfg.name}: {folder} exists and is no run folder; choose another name")
        _check_space(cfg, folder)
        return found
    differing = differences(load_config(folder / "config.yaml"), cfg)
    if differing:
        key, (old, new) = next(iter(differing.items()))
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise ConfigError(
            f"name={cfg.name}: {folder} belongs to another config ({key}={old}, not {new}{more}); choose another name"
        )
    if found == "unfinished" and cfg.resume != "auto":
        raise ConfigError(f"{folder} holds an unfinished run; continue it with resume=auto, or choose another name")
    return found


@contextmanager
def frozen(cfg: RunConfig, command: list[str]) -> Iterator[Path]:
    """Write config.yaml and provenance.json. If the caller finds the input wrong after all, a folder that
    was new is removed again."""
    folder = folder_of(cfg)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_config(cfg, folder / "config.yaml")
        (folder / "provenance.json").write_text(json.dumps(provenance(command), indent=1) + "\n")
    except OSError as error:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(f"output={cfg.output} cannot be written: {error.strerror}; choose another folder") from None
    try:
        yield folder
    except ConfigError:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def provenance(command: list[str]) -> dict[str, Any]:
    """Where the run comes from. Never the environment: it holds secrets."""
    import torch

    checkout = Path(__file__).resolve().parent
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "commit": _git(checkout, "rev-parse", "HEAD"),
        "dirty_diff": _git(checkout, "diff", "HEAD"),
        "python": platform.python_version(),
        "versions": versions,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git about the package's checkout; None where it is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _check_space(cfg: RunConfig, folder: Path) -> None:
    """The output must take the checkpoints that the run will keep, and one more while it is written."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"output={cfg.output} cannot be written: {existing} is not a writable folder")
    free = shutil.disk_usage(existing).free
    if free < SPARE_BYTES:
        raise ConfigError(
            f"output={cfg.output} has {free / 2**20:.0f} MiB of free space, less than {SPARE_BYTES / 2**20:.0f}; "
            "make room or choose another folder"
        )


def command_line() -> list[str]:
    """The command as typed."""
    return ["sae-dist", *sys.argv[1:]]
