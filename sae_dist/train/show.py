"""After the evaluation: W&B gets the run's numbers, plots and, if asked, files."""

import json
from pathlib import Path

from sae_dist.core.config import load_config
from sae_dist.metrics.wandb_media import publish


def publish_run(folder: Path) -> None:
    """What summary.json and plots/ of one dictionary hold; W&B's failure is said, not raised."""
    path = folder / "summary.json"
    if path.exists():
        publish(load_config(folder / "config.yaml"), folder, json.loads(path.read_text(encoding="utf-8")))
