"""The whole model with its head in one process: can cross-entropy with replaced activations be measured?

Training runs the layers up to the hook alone, so that it ends well where this cannot be done. It is asked
before the first step, and again by the evaluation.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json
from sae_dist.core.text import gib
from sae_dist.core.types import LlmFacts
from sae_dist.llm.fit import USABLE, memory_bytes, weights_bytes, why_not_whole
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.hub import loading

CPU = torch.device("cpu")
EARLY_TARGET = "the LLM reaches target_hook before hook, too early to splice"


def why_not_spliced(cfg: LlmConfig, facts: LlmFacts, device: torch.device) -> str | None:
    """Explain why cross-entropy with replaced activations cannot be measured; None: it can.

    A model whose weights are not on this machine yet counts as whole; `load_to_splice` finds out later.
    """
    if not facts.causal:
        return "the LLM is an encoder: it predicts no next token"
    if facts.target_first:
        return EARLY_TARGET
    assert cfg.dtype is not None, "filled in by config.resolve"
    return why_not_whole(facts, cfg.dtype, device) or why_no_head(cfg, facts)


def why_no_head(cfg: LlmConfig, facts: LlmFacts) -> str | None:
    """Explain why the model's checkpoint has no language head; None: it has one, or needs none.

    Names in a checkpoint may be older than the model's code. Where they lack the head, loading it decides.
    """
    reason = _head_not_named(cfg, facts)
    if reason is None or why_not_whole(facts, "float32", CPU) is not None:
        return reason
    try:
        whole(cfg, facts, CPU, torch.float32)
    except ConfigError:
        return reason
    return None


def _head_not_named(cfg: LlmConfig, facts: LlmFacts) -> str | None:
    """Say that no weight in the checkpoint is named like the head; None: one is, or none is needed."""
    if not facts.causal or cfg.random_init or not (stored := stored_names(Path(facts.path))):
        return None
    try:
        head = own_head(cfg, facts.path, facts.auto[1])
    except ConfigError:
        return None  # Code of a model that runs on no meta device; the evaluation finds out.
    if head is None or any(head in name.split(".") for name in stored):
        return None
    return f"llm.name={cfg.name} has no language head: there is no {head} in its checkpoint"


def stored_names(folder: Path) -> list[str]:
    """List the names of the weights in a model's folder; empty: it is no folder, or has other files."""
    for index in (*folder.glob("model.safetensors.index.json"), *folder.glob("pytorch_model.bin.index.json")):
        return list((read_json(index) or {}).get("weight_map", {}))
    try:
        with safe_open(folder / "model.safetensors", "pt") as file:
            return list(file.keys())
    except (FileNotFoundError, SafetensorError):
        return []


def own_head(cfg: LlmConfig, path: str, auto_name: str) -> str | None:
    """Return the name of the module that makes logits, without its parents' names; None: it is tied.

    Args:
        auto_name: of the auto class that loads the whole model.
    """
    import transformers

    with loading(cfg.name):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
        with torch.device("meta"):
            auto: Any = getattr(transformers, auto_name)
            model = auto.from_config(config, trust_remote_code=cfg.trust_remote_code)
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is getattr(table, "weight", None):
        return None
    return next(name.rpartition(".")[2] for name, module in model.named_modules() if module is head)


def load_to_splice(cfg: LlmConfig, facts: LlmFacts, device: torch.device) -> tuple[FrozenLlm, str | None]:
    """Load the whole model where that can be done, else the layers up to the hook, and say why.

    Raises:
        ConfigError: not even those load.
    """
    assert cfg.dtype is not None, "filled in by config.resolve"
    reason = why_not_whole(facts, cfg.dtype, device)
    if reason is None:
        try:
            return whole(cfg, facts, device, getattr(torch, cfg.dtype)), None
        except ConfigError as error:
            reason = _head_not_named(cfg, facts) or str(error)
    return up_to_hook(cfg, facts, device), reason


def up_to_hook(cfg: LlmConfig, facts: LlmFacts, device: torch.device) -> FrozenLlm:
    """Load the layers up to the last hook into this process, as training runs them.

    Raises:
        ConfigError: see `FrozenLlm.load`.
    """
    assert cfg.dtype is not None, "filled in by config.resolve"
    alone, dtype = dataclasses.replace(cfg, compile=False), getattr(torch, cfg.dtype)
    return FrozenLlm.load(alone, facts, device=device, dtype=dtype, with_head=False)


def whole(cfg: LlmConfig, facts: LlmFacts, device: torch.device, dtype: torch.dtype) -> FrozenLlm:
    """Load the whole model into this process.

    Raises:
        ConfigError: weights are missing, or packed documents see each other behind the hook.
    """
    alone = dataclasses.replace(cfg, compile=False)
    return FrozenLlm.load(alone, facts, device=device, dtype=dtype, with_head=True)


def why_not_held(facts: LlmFacts, dtype: str, device: torch.device) -> str | None:
    """Explain why one process cannot hold the layers up to the hook; None: it can."""
    weights, memory = weights_bytes(facts, dtype), memory_bytes(device.type)
    if weights <= USABLE * memory:
        return None
    return (
        f"evaluation holds the model up to its hook in one process: {gib(weights)} in {dtype}, and there are "
        f"{gib(memory)}"
    )


def why_no_room(dictionary: int, device: torch.device) -> str | None:
    """Explain why one process cannot hold a dictionary of so many bytes, for evaluation; None: it can."""
    memory = memory_bytes(device.type)
    if dictionary <= USABLE * memory:
        return None
    return (
        f"evaluation holds the dictionary in one process: {gib(dictionary)}, and there are {gib(memory)}; "
        "sae-dist eval does it later, on a larger machine"
    )
