"""Checks of a composed config that need no torch: most wrong input is answered before torch is imported."""

from pathlib import Path

from sae_dist.config.grid import captured
from sae_dist.config.run import RunConfig
from sae_dist.launch.folder_kind import FolderKind
from sae_dist.launch.freeze import check_place


def look_ahead(cfg: RunConfig, kind: FolderKind | None = None) -> None:
    """Check that what a config names is here: folder, model, layers of hooks, texts, arrays.

    `settle` checks the same things again, and all that they hold.

    Args:
        kind: of the folder that will be made; None: a run.

    Raises:
        ConfigError: something is missing, or is not what it should be.
    """
    check_place(cfg, kind)
    _check_evaluation(cfg)
    if cfg.sae.start is not None:
        from sae_dist.export.names import start_folder

        start_folder(cfg.sae.start)
    if cfg.reads_file:
        from sae_dist.transport.array_file import find_arrays

        find_arrays(cfg.activations.path or "", cfg.activations.key)
    elif cfg.is_synthetic:
        from sae_dist.transport.firing_rates import firing_rates

        firing_rates(cfg.activations)
    elif cfg.runs_llm:
        from sae_dist.llm.config_file import check_ahead

        first, more = captured(cfg)
        hooks = dict(zip(("hook", "target_hook"), first, strict=True))
        for number, (each, target) in enumerate(more, 1):
            hooks |= {f"grid.hook[{number}]": each, f"grid.target_hook[{number}]": target}
        check_ahead(cfg.llm, hooks, cfg.tokens.context)
        _check_text(cfg)


def _check_evaluation(cfg: RunConfig) -> None:
    """Check the files that `sae-dist eval` will read, if the config names any."""
    if cfg.eval.corpus and cfg.has_llm:
        from sae_dist.tokens.text_files import text_files

        text_files(Path(cfg.eval.corpus).expanduser(), f"eval.corpus={cfg.eval.corpus}")
    if cfg.eval.probes:
        from sae_dist.evaluation.asked import PYTHON, labelled_file

        if cfg.eval.probes != PYTHON:
            labelled_file(cfg.eval.probes)


def _check_text(cfg: RunConfig) -> None:
    tokens = cfg.tokens
    field = f"tokens.path={tokens.path}"
    if tokens.kind == "hf":
        from sae_dist.tokens.hf import check_dataset

        check_dataset(tokens)
    elif tokens.path and tokens.kind == "webdataset":
        from sae_dist.tokens.shards import expand

        expand(tokens.path, field)
    elif tokens.path:
        from sae_dist.tokens.text_files import text_files

        text_files(Path(tokens.path).expanduser(), field)
