"""A run on the embedded model with a random dictionary, evaluated in a second."""

from pathlib import Path

from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, save_config
from sae_dist.evaluation.summary import evaluate_run
from sae_dist.export.saelens import export_saelens
from tests.helpers.dictionaries import random_sae

LATENTS, WIDTH, CODES = 48, 256, 5


def evaluated_run(
    folder: Path,
    *,
    tokens: int,
    ce_tokens: int = 0,
    hook: str = "layers.0",
    latents: int = LATENTS,
    k: int = CODES,
) -> Path:
    """Make the run in a folder, TopK, evaluated on so many tokens."""
    cfg = RunConfig(device="cpu", kernels="torch", name="a-run")
    cfg.sae.kind, cfg.sae.num_latents, cfg.sae.k, cfg.optim.kind = "topk", latents, k, "adam"
    cfg.llm.name, cfg.tokens.kind, cfg.activations.kind = "embedded", "text", "llm"
    cfg.llm.dtype, cfg.hook, cfg.shuffle.chunk_rows = "float32", hook, 256
    cfg.eval.tokens, cfg.eval.ce_tokens, cfg.eval.baselines = tokens, ce_tokens, False
    export_saelens(folder / "export", random_sae("topk", F=latents, D=WIDTH, k=k))
    save_config(resolve(cfg, None, 8), folder / "config.yaml")
    evaluate_run(folder)
    return folder
