"""Exports the newest checkpoint of a run, a few latents at a time, and publishes the export.

The Hugging Face Hub gets it as a repository, if asked; W&B gets numbers, plots and files.

Letters: as core.types; N latents of a part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_dist.checkpoint.read import StoredRows, load_full, newest
from sae_dist.config.grid import run_of, single
from sae_dist.config.run import Resolved, Single, load_config
from sae_dist.config.trust import NOTHING, Granted
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json
from sae_dist.core.run_folder import CONFIG, EXPORT, HUB, PROVENANCE, WRITTEN, read_summary
from sae_dist.core.text import print_line
from sae_dist.dictionary.base import dictionary_class
from sae_dist.dictionary.latents import levels
from sae_dist.export.exported import OF_LATENTS, ExportedSae, Latents
from sae_dist.export.fold import tensor_names, to_exported
from sae_dist.export.formats import FORMATS, check_format, write
from sae_dist.export.hub import check_repo, make_folder, upload
from sae_dist.export.saelens import SAE_CONFIG, WEIGHTS, open_exported
from sae_dist.export.sound import check_files
from sae_dist.llm.facts import whole_path
from sae_dist.metrics.wandb_media import publish as publish_media
from sae_dist.train.sources import build_facts


class CheckpointLatents:
    """The finished dictionary of a checkpoint, in raw activation space; see `export.exported.Latents`.

    The checkpoint may have been written by any number of ranks. Latents of a matryoshka dictionary are
    sorted by level, in their order within a level: the first prefix is the innermost dictionary.
    """

    def __init__(self, cfg: Single, checkpoint: Path):
        """Read what the latents share.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        self._cfg, self._kind, self._rows = cfg, dictionary_class(cfg.sae.kind), StoredRows(checkpoint)
        names = tensor_names(cfg, self._kind)
        shared = [name for name in names if name not in self._kind.sharded]
        self._shared, scalars = load_full(checkpoint, shared)
        self._scales = scalars["scales"]
        self.step: int = scalars["step"]
        F = self._rows.shape("W_enc")[0]
        self._order_F: Tensor | None = None
        metadata = {"sae_dist_step": self.step, "training_tokens": scalars["tokens"]}
        if cfg.sae.prefixes is not None:
            level_F = levels(F, cfg.sae.prefixes)
            self._order_F = level_F.argsort(stable=True)
            metadata["matryoshka_prefixes"] = torch.bincount(level_F).cumsum(0).tolist()
        self.head = _without_latents(self._read(torch.zeros(1, dtype=torch.int64)), F)
        self.head.metadata |= metadata

    def tile(self, latents: slice) -> ExportedSae:
        """Return some of the latents; see `export.exported.Latents`."""
        if self._order_F is None:
            return self._read(torch.arange(latents.start, latents.stop))
        return self._read(self._order_F[latents])

    def _read(self, index_N: Tensor) -> ExportedSae:
        rows = {name: self._rows.rows(name, index_N) for name in self._kind.sharded}
        return to_exported(self._cfg, self._kind, rows | self._shared, self._scales)


def _without_latents(one: ExportedSae, num_latents: int) -> ExportedSae:
    """Return what the latents of a dictionary share, from any part of it."""
    empty: dict[str, Any] = {
        name: torch.empty(num_latents, *value.shape[1:], dtype=value.dtype, device="meta")
        for name in OF_LATENTS
        if (value := getattr(one, name)) is not None
    }
    return replace(one, **empty)


def export_run(folder: Path, formats: Sequence[str] = ("saelens",), granted: Granted = NOTHING) -> list[Path]:
    """Write `folder`/export from the newest sound checkpoint, in raw activation space; return the folders.

    A run that is not at its end is exported as it stands, with a message. An imported dictionary has no
    checkpoint: its export is written in other formats.

    Args:
        formats: of `export.formats.FORMATS`.
        granted: see `config.trust`.

    Raises:
        ConfigError: the folder is no run, has no checkpoint yet, or is of a kind that a format lacks.
        CheckpointError: every checkpoint is damaged, or one cannot be read.
        SaeDistError: the export could not be written.
    """
    latents = open_latents(folder, granted)
    for name in formats:
        check_format(name, latents.head)
    found = []
    for name in formats:
        found.append(folder / EXPORT / FORMATS[name].folder)
        if not (name == "saelens" and isinstance(latents, ExportedSae)):
            write(name, found[-1], latents)
    return found


def open_latents(folder: Path, granted: Granted = NOTHING) -> Latents:
    """Open the dictionary of a run folder: its newest checkpoint, or what was imported.

    Raises:
        ConfigError: the folder is no run, or has no checkpoint yet.
        CheckpointError: every checkpoint is damaged, or one cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    cfg = single(load_config(folder / CONFIG, granted), folder)
    checkpoint = newest(folder)
    if checkpoint is None:
        if (folder / EXPORT / SAE_CONFIG).is_file():
            check_files(folder / EXPORT, [folder / EXPORT / WEIGHTS])
            return open_exported(folder / EXPORT)
        raise ConfigError(f"{folder} has no checkpoint yet; train it first (resume=auto continues it)")
    latents = CheckpointLatents(cfg, checkpoint)
    latents.head.metadata |= origin(cfg, as_written(folder))
    if latents.step < cfg.steps:
        print_line(f"{folder} is unfinished: this is its step {latents.step} of {cfg.steps}")
    return latents


def as_written(folder: Path) -> dict[str, Any]:
    """Return the paths of a run as its command had them, by key, where its config has them absolute."""
    return (read_json(run_of(folder) / PROVENANCE) or {}).get(WRITTEN, {})


def origin(cfg: Resolved, written: Mapping[str, Any]) -> dict[str, Any]:
    """Return which model and text a dictionary belongs to, in SAELens' keys; {} where there is no LLM.

    Paths are those that the command had: those of this machine mean nothing on another.
    `hook_name` is the path in transformers' causal model, whose modules SAELens hooks by name where
    `model_class_name` is AutoModelForCausalLM. SAELens cannot hook inputs: such a name keeps its `:in`.
    """
    facts = build_facts(cfg)
    if facts is None:
        return {}
    facts = facts.only(cfg.hook, cfg.target_hook)
    names = {"hook_name": facts.hook}
    if facts.target_hook is not None:
        names["hook_name_out"] = facts.target_hook
    paths = {key: whole_path(facts, hook).removesuffix(":out") for key, hook in names.items()}
    texts = written.get("tokens.dataset", cfg.tokens.dataset) or written.get("tokens.path", cfg.tokens.path)
    found: dict[str, Any] = {
        "model_name": written.get("llm.name", facts.name),
        "model_class_name": "AutoModelForCausalLM" if facts.causal else "AutoModel",
        # Evaluations unpack it; a dtype in it would meet the one that SAEBench gives.
        "model_from_pretrained_kwargs": {},
        "llm_dtype": cfg.llm.dtype,
        "context_size": cfg.tokens.context,
        "prepend_bos": bool(facts.prefix),
        "exclude_special_tokens": True,
        "dataset_path": texts or "the Python standard library",
    }
    return found | paths | {f"hf_{key}": path for key, path in paths.items()}


def publish(
    run: Path, formats: Sequence[str], repo: str, *, upload_it: bool, granted: Granted = NOTHING
) -> str:
    """Export a run, and put the formats and a model card into `run`/hub.

    Args:
        repo: organisation/name.
        upload_it: push that folder to the Hub.
        granted: see `config.trust`.

    Returns:
        The folder, or the repository's address.

    Raises:
        ConfigError: `repo` is no repository's name; and see `export_run`.
        SaeDistError: the disk or the Hub rejected it.
    """
    check_repo(repo)
    export_run(run, formats, granted)
    make_folder(run / HUB, run / EXPORT, formats, open_latents(run, granted).head, read_summary(run), repo)
    return upload(run / HUB, repo) if upload_it else str(run / HUB)


def publish_run(folder: Path) -> None:
    """Publish summary.json and plots/ of one dictionary on W&B; a failure there is printed, not raised."""
    if summary := read_summary(folder):
        publish_media(load_config(folder / CONFIG), folder, summary)
