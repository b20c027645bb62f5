"""Random transcoders at every MLP of small random models of any architecture, for graphs."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sae_dist.graph.replacement import Replacement
from sae_dist.graph.sites import sites_of
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel, as_model
from sae_dist.interpret.place import Place
from tests.helpers.architectures import WIDTH, small_config
from tests.helpers.dictionaries import random_sae

TARGETS = {"bloom": "dense_4h_to_h:out", "mpt": "down_proj:out"}
"""Of MLPs that add the residual stream themselves: what they add to it."""
MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
TOKENS = 9


def small_model(kind: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A random model whose weights are large, so that attention is far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(kind))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    return as_model(model.to(dtype).eval())


def hooks_of(lm: LanguageModel, kind: str) -> list[tuple[str, str]]:
    """The hook and the target of each layer's MLP."""
    found = []
    for name, module in lm.base.named_modules():
        *_, number, last = ("", "", *name.split("."))
        if any(part in name for part in ("vision", "audio", "image", "img")):
            continue
        if number.isdigit() and last in MLPS:
            inside = TARGETS.get(kind)
            found.append((f"{name}:in", f"{name}.{inside}" if inside else f"{name}:out"))
        elif number.isdigit() and hasattr(module, "weight") and last == "fc1":
            found.append((f"{name}:in", f"{name.removesuffix('fc1')}fc2:out"))
    return found


def transcoders(
    lm: LanguageModel, kind: str, latents: str = "topk", form: str = "transcoder", **shape: Any
) -> list[Dictionary]:
    """A random transcoder of each layer, of which some latents fire at every token."""
    found = []
    for layer, (hook, target) in enumerate(hooks_of(lm, kind)):
        sizes = {"F": 60, "D": WIDTH, "out": WIDTH, "k": 5} | shape
        sae = random_sae(latents, form, dtype=lm.dtype, **sizes)
        draw = torch.Generator().manual_seed(layer)
        order = torch.randperm(sae.num_latents, generator=draw)
        sae = sae.tile(order)  # other latents of each layer at the same numbers
        said = {"hook_name": hook, "hook_name_out": target}
        found.append(Dictionary(sae, Place(Path(f"layer{layer}"), said=said)))
    return found


def prompt(size: int = TOKENS, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    return torch.randint(20, 2000, (size,), generator=torch.Generator().manual_seed(seed)).tolist()


def replacement(
    kind: str, latents: str = "topk", form: str = "transcoder", dtype: torch.dtype = torch.float64, **how: Any
) -> Replacement:
    """The local replacement model of a random prompt, with two logits as targets."""
    lm = small_model(kind, dtype)
    ids = torch.tensor(prompt(**how))
    sites = sites_of(transcoders(lm, kind, latents, form), lm)
    found = Replacement(sites, lm, ids)
    found.tokens_T = torch.tensor([7, 11])
    return found
