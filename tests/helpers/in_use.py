"""Random dictionaries on small random models, as they are used."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.place import Place
from tests.helpers.dictionaries import random_sae
from tests.helpers.tiny_llms import WIDTH

HOOK = "layers.1"


def dictionary(kind="topk", form="autoencoder", hook=HOOK, target="layers.1.mlp", **shape) -> Dictionary:
    """A random dictionary for the tiny models: some of its latents fire on each of their activations."""
    sae = random_sae(kind, form, **{"F": 200, "D": WIDTH, "out": WIDTH, "k": 8} | shape)
    said = {"hook_name": hook} | ({"hook_name_out": target} if form != "autoencoder" else {})
    return Dictionary(sae, Place(Path("nowhere"), said=said))


def causal(folder: str, dtype=torch.float64):
    """A tiny model as a user holds it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def tokens(shape=(2, 12), seed=0) -> torch.Tensor:
    """Random token ids, none of them special."""
    return torch.randint(10, 2000, shape, generator=torch.Generator().manual_seed(seed))
