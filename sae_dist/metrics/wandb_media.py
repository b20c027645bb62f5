"""The final entry of a run in W&B: numbers, a table, the density and plots; files if asked."""

import re
from pathlib import Path
from typing import Any

from sae_dist.config.run import RunConfig
from sae_dist.core.files import read_json
from sae_dist.core.run_folder import CHECKPOINTS, EXPORT, LATEST, PLOTS
from sae_dist.core.text import class_and_line, print_line, visible
from sae_dist.metrics.catalogue import SUMMARY
from sae_dist.metrics.evaluated import EVAL
from sae_dist.metrics.wandb_sink import USED, begin

STEP = re.compile(r"step_\d+")


def publish(cfg: RunConfig, folder: Path, summary: dict[str, Any]) -> None:
    """Add the results to the W&B run that training logged to; do nothing if there was none. Never fatal.

    Args:
        summary: the content of summary.json.
    """
    path = folder / "wandb" / USED
    if not path.exists():
        return
    try:
        used = read_json(path) or {}
        run = begin(cfg, folder, used["id"], used["mode"])
        run.log(row(folder, summary))
        run.summary.update({f"summary/{key}": value for key, value in numbers(summary, SUMMARY).items()})
        if cfg.metrics.upload:
            run.log_artifact(_artifact(folder, used["id"]))
        run.finish()
    except Exception as error:
        print_line(f"wandb got no final numbers, which are in summary.json: {class_and_line(error)}")


def row(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the evaluation, and the media."""
    import wandb

    found: dict[str, Any] = {"tokens": summary.get("tokens"), "step": summary.get("steps")}
    measured = numbers(summary, EVAL)
    found |= {f"eval/{key}": value for key, value in measured.items()}
    by_name = {metric.name: metric for metric in EVAL}
    lines = [
        [key, value, by_name[f"eval/{key}"].unit, by_name[f"eval/{key}"].meaning]
        for key, value in measured.items()
    ]
    found["eval/table"] = wandb.Table(columns=["name", "value", "unit", "meaning"], data=lines)
    if density := summary.get("density"):
        histogram = (density["latents"], density["log10_edges"])
        found["eval/density"] = wandb.Histogram(np_histogram=histogram)
    for path in sorted((folder / PLOTS).glob("*.png")):
        # A link in a folder from elsewhere would send another file of this machine.
        if path.resolve().is_relative_to(folder.resolve()):
            found[f"plots/{visible(path.stem)}"] = wandb.Image(str(path))
    return found


def numbers(summary: dict[str, Any], metrics: tuple[Any, ...]) -> dict[str, float]:
    """Select from summary.json the numbers that are listed in `metrics`, by their keys there."""
    keys = [metric.name.rpartition("/")[2] for metric in metrics]
    return {key: summary[key] for key in keys if isinstance(summary.get(key), int | float)}


def _artifact(folder: Path, run_id: str) -> Any:
    import wandb

    artifact = wandb.Artifact(f"run-{run_id}", type="model")
    artifact.add_dir(str(folder / EXPORT), name="export")
    latest = folder / CHECKPOINTS / LATEST
    name = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
    if STEP.fullmatch(name):
        artifact.add_dir(str(latest.parent / name), name="checkpoint")
    return artifact
