"""The command `sae-dist eval`: a run's export is evaluated as its config and the keys of `eval` say.

README.md in this folder defines the numbers.
"""

from pathlib import Path
from typing import Any

import torch

from sae_dist.config.run import Resolved
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_json
from sae_dist.core.run_folder import EVALUATION, EXPORT, PLOTS
from sae_dist.core.text import gib
from sae_dist.evaluation.asked import check_files
from sae_dist.evaluation.costly import check_asked, evaluate_costly
from sae_dist.evaluation.plots import plot_evaluation
from sae_dist.evaluation.subject import Subject
from sae_dist.evaluation.summary import device_of, encode_of, evaluate_runs, half_the_cores
from sae_dist.export.saelens import WEIGHTS, load_exported
from sae_dist.llm.fit import memory_bytes
from sae_dist.llm.whole import why_no_room
from sae_dist.metrics.evaluated import MEASURED, RECOVERY, keys

TRAINED = {"step": "sae_dist_step", "tokens": "training_tokens"}
"""The progress of the run at the export: key in eval.json -> key in the export's metadata."""


def evaluate_folder(folder: Path, asked: Resolved, full: bool) -> dict[str, Any]:
    """Evaluate `folder`/export; write eval.json, its plots, and summary.json as the end of training does.

    Args:
        asked: the run's config, with the requested keys of `eval`.
        full: compute the costly numbers too.

    Returns:
        The content of eval.json, and of summary.json where it has more.

    Raises:
        ConfigError: the folder has no export, what a key names is missing, or the dictionary does not fit.
        DataError: there are no held-out activations.
    """
    cfg = check_files(folder, asked)
    device = device_of(cfg)
    check_fits(folder / EXPORT, device)
    subject = Subject(cfg, folder, load_exported(folder / EXPORT), encode_of(cfg, device), device)
    with torch.no_grad():
        check_asked(subject)
    summary = evaluate_runs([folder], [cfg])[0]
    subject.sae = subject.sae.to(device)
    with torch.no_grad(), half_the_cores():
        costly = evaluate_costly(subject, full)
    exported = subject.sae.metadata
    result: dict[str, Any] = {"run": folder.absolute().name, "full": full}
    result |= {key: exported[there] for key, there in TRAINED.items() if there in exported}
    result |= {key: summary[key] for key in keys(RECOVERY) if key in summary}
    for metric in MEASURED:
        result[metric.key] = summary.get(metric.key)
        if result[metric.key] is None:
            why = summary.get(metric.reason) or metric.applies or "eval.tokens=0"
            result[f"{metric.key}_reason"] = why
    result |= costly
    write_json(folder / EVALUATION, result)
    plot_evaluation(result, folder / PLOTS)
    return summary | result


def check_fits(export: Path, device: torch.device) -> None:
    """Check that this process can hold the dictionary.

    Raises:
        ConfigError: it cannot.
    """
    weights = export / WEIGHTS
    # The reader of the export names a missing file.
    if weights.is_file() and why_no_room(weights.stat().st_size, device) is not None:
        raise ConfigError(
            f"{export} needs {gib(weights.stat().st_size)} and there are {gib(memory_bytes(device.type))}: "
            "one process holds the dictionary"
        )
