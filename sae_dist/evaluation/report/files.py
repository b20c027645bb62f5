"""What a run folder holds, read once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.config.grid import single
from sae_dist.config.run import Resolved, load_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json
from sae_dist.core.run_folder import (
    CONFIG,
    EVALUATION,
    FINISHED,
    IMPORTED,
    METRICS,
    PROVENANCE,
    TRAINED,
    read_summary,
    status,
)
from sae_dist.metrics.sinks import read_rows

DONE = (FINISHED, TRAINED, IMPORTED)


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
        return status(self.folder, self.summary)

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
    cfg = single(load_config(folder / CONFIG), folder)
    metrics = folder / METRICS
    try:
        rows = read_rows(metrics) if metrics.exists() else []
    except ValueError as error:
        raise ConfigError(f"{metrics} is damaged ({error}); remove the line that is no JSON") from None
    started = next((p for p in (folder, folder.parent) if (p / PROVENANCE).is_file()), folder)
    return RunFiles(
        folder=folder,
        started=started,
        cfg=cfg,
        config_text=(folder / CONFIG).read_text(encoding="utf-8"),
        summary=read_summary(folder),
        provenance=read_json(started / PROVENANCE) or {},
        rows=rows,
        evaluation=read_json(folder / EVALUATION),
    )
