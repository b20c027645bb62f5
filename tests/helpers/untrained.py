"""A run on the small model that nobody trained: a random dictionary in its export."""

from pathlib import Path

from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, save_config
from sae_dist.export.saelens import export_saelens
from tests.helpers.dictionaries import random_sae
from tests.helpers.small_llm import WIDTH


def untrained_run(folder: Path, name: str, kind: str = "topk", latents: int = 512, k: int = 8) -> Path:
    """Make the run in a folder that `save_small_llm` was given; `kind` is one of `dictionaries.KINDS`."""
    cfg = RunConfig(device="cpu", kernels="torch", name=name)
    cfg.sae.kind, cfg.sae.num_latents, cfg.sae.k, cfg.optim.kind = kind, latents, k, "adam"
    cfg.llm.name, cfg.llm.dtype, cfg.hook = str(folder / "llm"), "float32", "layers.1"
    cfg.tokens.kind, cfg.tokens.path = "text", str(folder / "texts.jsonl")
    cfg.activations.kind, cfg.shuffle.chunk_rows = "llm", 128
    run = folder / name
    export_saelens(run / "export", random_sae(kind, F=latents, D=WIDTH, k=k))
    save_config(resolve(cfg, None, WIDTH), run / "config.yaml")
    return run
