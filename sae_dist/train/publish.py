"""A run's export as a repository of the Hugging Face Hub."""

import json
from collections.abc import Sequence
from pathlib import Path

from sae_dist.export.hub import check_repo, make_folder, upload
from sae_dist.train.finish import export_run, open_latents


def publish(run: Path, formats: Sequence[str], repo: str, *, upload_it: bool) -> str:
    """Export a run, and put the formats and a model card into `run`/hub.

    Args:
        repo: organisation/name.
        upload_it: push that folder.

    Returns:
        Where it is: the folder, or the repository's address.

    Raises:
        ConfigError: no repository's name; and see `export_run`.
        SaeDistError: the disk or the Hub does not take it.
    """
    check_repo(repo)
    export_run(run, formats)
    summary = run / "summary.json"
    numbers = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    make_folder(run / "hub", run / "export", formats, open_latents(run).head, numbers, repo)
    return upload(run / "hub", repo) if upload_it else str(run / "hub")
