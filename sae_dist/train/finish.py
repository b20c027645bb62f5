"""After training: the newest checkpoint becomes an export."""

from pathlib import Path

from sae_dist.checkpoint.store import Checkpoints, load_full
from sae_dist.core.config import load_config
from sae_dist.core.errors import ConfigError
from sae_dist.export.exported import ExportedSae, fold_scale
from sae_dist.export.saelens import export_saelens
from sae_dist.train.build import build_facts


def export_run(folder: Path) -> Path:
    """Write `folder`/export from the newest checkpoint, in raw activation space, and return its path.

    The checkpoint may have been written by any number of ranks; this is one process.

    Raises:
        ConfigError: the folder is no run, or has no checkpoint yet.
        CheckpointError: the checkpoint cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    cfg = load_config(folder / "config.yaml")
    newest = Checkpoints.newest(folder)
    if newest is None:
        raise ConfigError(f"{folder} has no checkpoint yet; train it first (resume=auto continues it)")
    tensors, scalars = load_full(newest, ["W_enc", "b_enc", "W_dec", "b_dec"])
    weights = fold_scale(
        tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec"], scale=scalars["scales"][0]
    )
    facts = build_facts(cfg)
    metadata = {"sae_dist_step": scalars["step"], "training_tokens": scalars["tokens"]}
    if facts is not None:
        metadata |= {
            "model_name": facts.name,
            "hook_name": facts.hook.removesuffix(":out"),
            "hf_hook_name": facts.hook.removesuffix(":out"),
            "context_size": cfg.tokens.context,
            "prepend_bos": bool(facts.prefix),
            "dataset_path": cfg.tokens.dataset or cfg.tokens.path or "the Python standard library",
        }
    export_saelens(folder / "export", ExportedSae(*weights, k=cfg.sae.k, metadata=metadata))
    return folder / "export"
