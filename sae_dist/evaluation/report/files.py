"""The files of a run folder, read once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.config.grid import single
from sae_dist.config.run import Resolved, load_config
from sae_dist.config.trust import NOTHING, Granted
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
from sae_dist.metrics.jsonl import read_rows

DONE = (FINISHED, TRAINED, IMPORTED)


@dataclass(frozen=True)
class RunFiles:
    """The files of a run of one dictionary.

    Attributes:
        started: the folder that a command made and continues: its own; for a grid's dictionary, the grid's.
        config_text: the text of config.yaml.
        summary, provenance: the content of their JSON files; empty if there is no such file.
        rows: those of metrics.jsonl.
        evaluation: the content of eval.json; None: there is no such file.
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
        """The status: finished, trained (not evaluated), diverged, unfinished, not started, or missing."""
        return status(self.folder, self.summary)

    @property
    def is_done(self) -> bool:
        """The answer to whether training came to its end."""
        return self.status in DONE

    @property
    def tokens(self) -> int:
        """The number of tokens trained on, as far as is known."""
        return self.summary.get("tokens") or (self.rows[-1]["tokens"] if self.rows else 0)


def read_run(folder: Path, granted: Granted = NOTHING) -> RunFiles:
    """Read a run folder.

    Raises:
        ConfigError: it is not a run's folder, is a grid's, or a file in it is damaged.
    """
    cfg = single(load_config(folder / CONFIG, granted), folder)
    metrics = folder / METRICS
    started = next((p for p in (folder, folder.parent) if (p / PROVENANCE).is_file()), folder)
    return RunFiles(
        folder=folder,
        started=started,
        cfg=cfg,
        config_text=(folder / CONFIG).read_text(encoding="utf-8"),
        summary=read_summary(folder),
        provenance=read_json(started / PROVENANCE) or {},
        rows=read_rows(metrics) if metrics.exists() else [],
        evaluation=read_json(folder / EVALUATION),
    )
