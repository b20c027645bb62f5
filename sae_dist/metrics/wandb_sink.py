"""Weights & Biases: online, offline, or out of the way. No failure of W&B stops a run.

Rows are logged without W&B's `step`: it would drop those that a resumed run writes again. Their x-axis is
`tokens`, so such rows stand twice at the same place.
"""

import json
import netrc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import OmegaConf
from tqdm import tqdm

from sae_dist.config.run import RunConfig
from sae_dist.core.run_folder import CONFIG

INIT_TIMEOUT_S = 20
USED = "sae_dist.json"
"""In the run folder's wandb/: which run of W&B this is, and how it was logged."""
LONGEST_TITLE = 63
HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""Where W&B's library logs to by default: since 0.31, and before."""


class WandbSink:
    """Sends rows to W&B, with `tokens` as the x-axis. Its files lie in the run folder."""

    def __init__(self, cfg: RunConfig, folder: Path, run_id: str):
        self._run: Any = None
        self._mode = wandb_mode(cfg.metrics.wandb)
        if self._mode == "disabled":
            return
        # W&B's service process holds on to the id of a run whose start failed.
        tries = (
            {self._mode: run_id} if self._mode == "offline" else {self._mode: run_id, "offline": run_id + "o"}
        )
        for self._mode, each in tries.items():
            try:
                self._run = begin(cfg, folder, each, self._mode)
                used = json.dumps({"id": each, "mode": self._mode})
                (folder / "wandb" / USED).write_text(used, encoding="utf-8")
                return
            except Exception as error:
                say(f"wandb ({self._mode}) failed, the run goes on: {one_line(error)}")

    def write(self, row: dict[str, Any]) -> None:
        self._guard(lambda: self._run.log(row))

    def alert(self, title: str, text: str) -> None:
        self._guard(lambda: self._run.alert(title[:LONGEST_TITLE], text, level="WARN"))

    def close(self) -> None:
        run = self._run
        if run is None:
            return
        self._guard(run.finish)
        if self._run is not None and self._mode == "offline":
            # A run that went on has several parts, which W&B adds up if told to resume.
            parts = Path(run.dir).parents[1] / f"offline-run-*-{run.id}"
            say(f"wandb: offline; to upload: WANDB_RESUME=allow wandb sync {parts}")
        self._run = None

    def _guard(self, act: Any) -> None:
        """Do something with the run; the first failure says so once and ends W&B for this run."""
        if self._run is None:
            return
        try:
            act()
        except Exception as error:
            self._run = None
            say(f"wandb failed and is off from here on, the run goes on: {one_line(error)}")
            if isinstance(error, ConnectionError):
                _forget_service()


def wandb_mode(setting: str) -> str:
    """online | offline | disabled for `metrics.wandb`; `auto` honours WANDB_MODE, then looks for a key."""
    if setting != "auto":
        return setting
    if os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(os.environ["WANDB_MODE"], os.environ["WANDB_MODE"])
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether W&B's key is in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    given = os.environ.get("WANDB_BASE_URL")
    hosts = (urlsplit(given).hostname or "",) if given else HOSTS
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(host) for host in hosts)


def begin(cfg: RunConfig, folder: Path, run_id: str, mode: str) -> Any:
    """A run of W&B, new or gone on with."""
    import wandb

    # The dictionaries of a grid have a run each in one process.
    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S, reinit="create_new")
    with _user_signal_held_back():
        run = wandb.init(
            project=cfg.metrics.project,
            name=cfg.name or folder.name,
            group=cfg.metrics.group,
            job_type=groups(cfg, folder)["run"],
            id=run_id,
            resume="allow" if mode == "online" else None,
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            config=_config(cfg) | {"groups": groups(cfg, folder)},
            settings=settings,
        )
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    return run


def groups(cfg: RunConfig, folder: Path) -> dict[str, str | None]:
    """Names to group runs by: of the sweep, of the run, and, in a grid, of the dictionary within it."""
    in_grid = (folder.parent / CONFIG).is_file()
    run = folder.parent.name if in_grid else folder.name
    return {"sweep": cfg.metrics.group, "run": run, "dictionary": folder.name if in_grid else None}


def _config(cfg: RunConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.structured(cfg), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _forget_service() -> None:
    """W&B's own process is gone: without this W&B says so once more at the exit, by a traceback."""
    import wandb

    with suppress(Exception):
        wandb.teardown()


@contextmanager
def _user_signal_held_back() -> Iterator[None]:
    """W&B's own process, started meanwhile, is deaf to SIGUSR2 for good.

    Slurm signals every process of a job: a rank that is told to stop still has its last rows to send. To
    SIGTERM that process listens whatever is blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def one_line(error: Exception) -> str:
    """An error for the console."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def say(line: str) -> None:
    """On the console, above a progress bar."""
    tqdm.write(line, file=sys.stderr)
