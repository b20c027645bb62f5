"""Weights & Biases: online, offline, or disabled. No failure of W&B stops a run.

Rows are logged without W&B's `step`, with which it would drop those that a resumed run writes again. Their
x-axis is `tokens`; steps repeated after a resume are logged twice at the same x.
"""

import json
import netrc
import os
import signal
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sae_dist.config.run import RunConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG
from sae_dist.core.text import class_and_line, print_line, quoted, visible

INIT_TIMEOUT_S = 20
USED = "sae_dist.json"
"""The file in the run folder's wandb/ that records the id and mode of the W&B run."""
LONGEST_TITLE = 63
PLAIN_SETTINGS = ("entity", "project", "mode", "disabled", "silent", "quiet", "console")
HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""The default hosts of W&B's library: since version 0.31, and before."""


class WandbSink:
    """A sink that sends rows to W&B, with `tokens` as the x-axis. Its files are in the run folder."""

    def __init__(self, cfg: RunConfig, folder: Path, run_id: str):
        self._run: Any = None
        self._mode = wandb_mode(cfg.metrics.wandb)
        if self._mode == "disabled":
            return
        # W&B's service process keeps the id of a run whose start failed, so offline uses another id.
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
                print_line(f"wandb ({self._mode}) failed, the run goes on: {class_and_line(error)}")

    def write(self, row: dict[str, Any]) -> None:
        self._guard(lambda: self._run.log(row))

    def alert(self, title: str, text: str) -> None:
        self._guard(lambda: self._run.alert(visible(title)[:LONGEST_TITLE], visible(text), level="WARN"))

    def close(self) -> None:
        run = self._run
        if run is None:
            return
        self._guard(run.finish)
        if self._run is not None and self._mode == "offline":
            # A resumed run has several parts, which W&B joins only with WANDB_RESUME.
            parts = f"{quoted(Path(run.dir).parents[1])}/offline-run-*-{quoted(run.id)}"
            print_line(f"wandb: offline; to upload: WANDB_RESUME=allow wandb sync {parts}")
        self._run = None

    def _guard(self, act: Any) -> None:
        """Call `act`; the first failure is printed and ends W&B for this run."""
        if self._run is None:
            return
        try:
            act()
        except Exception as error:
            self._run = None
            print_line(f"wandb failed and is off from here on, the run goes on: {class_and_line(error)}")
            if isinstance(error, ConnectionError):
                _forget_service()


def wandb_mode(setting: str) -> str:
    """Return online | offline | disabled; for `auto` ask WANDB_MODE first, then look for a key."""
    if setting != "auto":
        return setting
    if os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(os.environ["WANDB_MODE"], os.environ["WANDB_MODE"])
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Return whether W&B's key is in the environment or in netrc."""
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
    """Start a W&B run, or continue one."""
    import wandb

    if mode == "online":
        _check_settings()
    _folders_that_can_be_written(folder / "wandb")
    # In a grid, one process has a W&B run for each dictionary.
    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S, reinit="create_new")
    with _user_signal_held_back():
        run = wandb.init(
            project=visible(cfg.metrics.project),
            name=visible(cfg.name or folder.name),
            group=shown(cfg.metrics.group),
            job_type=groups(cfg, folder)["run"],
            id=run_id,
            resume="allow" if mode == "online" else None,
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            config=_config(cfg) | {"groups": shown(groups(cfg, folder))},
            settings=settings,
        )
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    return run


def _check_settings() -> None:
    """Check that the working folder does not say where W&B's key is sent.

    The library reads such a file wherever it is started; a person's own is in the home folder.

    Raises:
        ConfigError: wandb/settings there sets more than names and modes.
    """
    if os.environ.get("WANDB_BASE_URL") or os.environ.get("WANDB_DIR"):
        return
    for path in (Path("wandb/settings"), Path(".wandb/settings")):
        found = ConfigParser(interpolation=None)
        with suppress(ConfigParserError, UnicodeDecodeError):
            found.read(path, encoding="utf-8")
        keys = [key for section in found.values() for key in section if key not in PLAIN_SETTINGS]
        if keys:
            raise ConfigError(
                f"{path} of the working folder sets {keys[0]}, which is not taken from a file there; set "
                "W&B's variables (WANDB_BASE_URL), or remove the line"
            )


def _folders_that_can_be_written(ours: Path) -> None:
    """Point W&B to the run folder for those of its own folders that cannot be made in the home folder.

    Its variables are the only way: it reads them wherever it stages tables, images and artifacts.
    """
    from wandb import env

    usual = {env.CACHE_DIR: str(env.get_cache_dir()), env.DATA_DIR: str(env.get_data_dir())}
    for variable, folder in usual.items():
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError:
            os.environ[variable] = str(ours / variable.removeprefix("WANDB_").lower())


def groups(cfg: RunConfig, folder: Path) -> dict[str, str | None]:
    """Return the names to group W&B runs by: sweep, run and, in a grid, the dictionary within the run."""
    in_grid = (folder.parent / CONFIG).is_file()
    run = folder.parent.name if in_grid else folder.name
    return {"sweep": cfg.metrics.group, "run": run, "dictionary": folder.name if in_grid else None}


def _config(cfg: RunConfig) -> dict[str, Any]:
    """Return the values of a config as they are: what looks like an interpolation is text."""
    return shown(asdict(cfg))


def shown(value: Any) -> Any:
    """Return what W&B is given, every text in it with its control characters written out."""
    if isinstance(value, dict):
        return {shown(key): shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shown(each) for each in value]
    return visible(value) if isinstance(value, str) else value


def _forget_service() -> None:
    """Close the connection to W&B's dead process, so that W&B prints no traceback at the exit."""
    import wandb

    with suppress(Exception):
        wandb.teardown()


@contextmanager
def _user_signal_held_back() -> Iterator[None]:
    """Block SIGUSR2 while W&B starts its own process, which then ignores it for good.

    Slurm signals every process of a job, and a rank that is asked to stop still has its last rows to send.
    SIGTERM reaches that process even if it is blocked here.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
