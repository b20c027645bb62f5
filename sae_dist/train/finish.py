"""After training: the newest checkpoint becomes an export."""

from pathlib import Path

from sae_dist.checkpoint.read import load_full, newest
from sae_dist.core.config import load_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.grid import check_single
from sae_dist.dictionary.levels import levels
from sae_dist.export.fold import tensor_names, to_exported
from sae_dist.export.saelens import export_saelens
from sae_dist.train.build import build_facts


def export_run(folder: Path) -> Path:
    """Write `folder`/export from the newest sound checkpoint, in raw activation space, and return its path.

    The checkpoint may have been written by any number of ranks; this is one process.

    Raises:
        ConfigError: the folder is no run, or has no checkpoint yet.
        CheckpointError: every checkpoint is damaged, or one cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    cfg = load_config(folder / "config.yaml")
    check_single(cfg, folder)
    checkpoint = newest(folder)
    if checkpoint is None:
        raise ConfigError(f"{folder} has no checkpoint yet; train it first (resume=auto continues it)")
    tensors, scalars = load_full(checkpoint, tensor_names(cfg))
    level_F = None
    if cfg.sae.prefixes is not None:
        assert cfg.sae.num_latents is not None
        level_F = levels(cfg.sae.num_latents, cfg.sae.prefixes)
    sae = to_exported(cfg, tensors, scalars["scales"], level_F)
    sae.metadata |= {"sae_dist_step": scalars["step"], "training_tokens": scalars["tokens"]}
    facts = build_facts(cfg)
    if facts is not None:
        sae.metadata |= {
            "model_name": facts.name,
            "hook_name": facts.hook.removesuffix(":out"),
            "hf_hook_name": facts.hook.removesuffix(":out"),
            "context_size": cfg.tokens.context,
            "prepend_bos": bool(facts.prefix),
            "dataset_path": cfg.tokens.dataset or cfg.tokens.path or "the Python standard library",
        }
        if facts.target_hook is not None:
            sae.metadata["hook_name_out"] = facts.target_hook.removesuffix(":out")
    export_saelens(folder / "export", sae)
    return folder / "export"
