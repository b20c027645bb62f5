"""The origin of a run: code, versions, machine, command. Never the environment, which may hold secrets."""

import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sae_dist.core.hidden import masked

LIBRARIES = ("sae-dist", "torch", "transformers", "numpy", "datasets", "webdataset", "hydra-core")
PACKAGE = Path(__file__).parents[1]


def provenance() -> dict[str, Any]:
    """Return the entry of provenance.json for one start of a run."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": masked(shlex.join(["sae-dist", *sys.argv[1:]])),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "devices": _devices(),
        "versions": {name: _version(name) for name in LIBRARIES},
        **_git(),
    }


def _devices() -> list[str]:
    import torch

    found = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return found or [platform.processor() or platform.machine()]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, str | None]:
    """Return the commit and uncommitted changes of this package's own checkout, if it is in one.

    An environment inside another repository is not such a checkout: git must track this file.
    """
    tracked = _run_git("ls-files", "--error-unmatch", __file__)
    if tracked is None:
        return {"commit": None, "diff": None}
    commit = _run_git("rev-parse", "HEAD")
    return {
        "commit": commit.strip() if commit else None,
        "diff": masked(_run_git("diff", "HEAD", "--", ".") or ""),
    }


def _run_git(*arguments: str) -> str | None:
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
