"""What a run folder holds, read once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.config.grid import single
from sae_dist.config.run import Resolved, load_config
from sae_dist.core.errors import ConfigError
from sae_dist.evaluation.sweep import status_of
from sae_dist.metrics.sinks import read_rows

DONE = ("finished", "trained", "imported")


@dataclass(frozen=True)
class RunFiles:
    """A run of one dictionary.

    Attributes:
        started: the folder that a command made and continues: its own, of a grid's dictionary the grid's.
        config_text: config.yaml as it stands.
        summary, provenance: of their JSON files; empty where there is none.
        rows: of metrics.jsonl.
        evaluation: eval.json; None: there is none.
    """

    folder: Path
    started: Path
    cfg: Resolved
    config_text: str
    summary: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluation: dict[str, Any] | None

    @property
    def status(self) -> str:
        """finished, trained (not evaluated), diverged, unfinished, not started, or missing."""
        return status_of(self.folder, self.summary)

    @property
    def is_done(self) -> bool:
        """Whether training came to its end."""
        return self.status in DONE

    @property
    def tokens(self) -> int:
        """Trained on, as far as is known."""
        return self.summary.get("tokens") or (self.rows[-1]["tokens"] if self.rows else 0)


def read_run(folder: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        ConfigError: it is none, is a grid's, or a file in it is not what it should be.
    """
    cfg = single(load_config(folder / "config.yaml"), folder)
    metrics = folder / "metrics.jsonl"
    try:
        rows = read_rows(metrics) if metrics.exists() else []
    except ValueError as error:
        raise ConfigError(f"{metrics} is damaged ({error}); remove the line that is no JSON") from None
    started = next((p for p in (folder, folder.parent) if (p / "provenance.json").is_file()), folder)
    return RunFiles(
        folder=folder,
        started=started,
        cfg=cfg,
        config_text=(folder / "config.yaml").read_text(encoding="utf-8"),
        summary=read_json(folder / "summary.json") or {},
        provenance=read_json(started / "provenance.json") or {},
        rows=rows,
        evaluation=read_json(folder / "eval.json"),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """An object of a JSON file; None: there is none.

    Raises:
        ConfigError: it is not JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); remove it, or write it again") from None
    return found if isinstance(found, dict) else None
