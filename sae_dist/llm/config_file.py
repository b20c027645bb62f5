"""Checks of hooks and context by a model's config.json, made before torch is imported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_dist.config.resolve import check_context
from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json
from sae_dist.llm.hub import resolve_here
from sae_dist.llm.names import check_layer, split_hook

DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
"""Names that models give to their number of layers."""


def check_ahead(cfg: LlmConfig, hooks: Mapping[str, str | None], context: int | None) -> None:
    """Refuse a model that is not here, layers of hooks and a context that it does not have.

    A model of the Hub is passed over, and so is what the file does not say: `llm.facts` checks it all.

    Args:
        hooks: by their keys in the config.
        context: `tokens.context`.

    Raises:
        ConfigError: see `llm.facts.llm_facts`.
    """
    given = {key: hook for key, hook in hooks.items() if hook is not None}
    for key, hook in given.items():
        split_hook(hook, key)
    path = resolve_here(cfg.name)
    if path is None:
        return
    try:
        found = read_json(Path(path) / "config.json") or {}
    except ConfigError:
        return
    text = _text_part(found)
    depths = [each for each in map(text.get, DEPTHS) if isinstance(each, int)]
    for key, hook in given.items() if depths else ():
        check_layer(hook, max(depths), key)
    longest, names = text.get("max_position_embeddings"), found.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    # Of others, such as RoBERTa, some positions are no token's.
    if isinstance(longest, int) and name.endswith("ForCausalLM") and "oberta" not in name:
        check_context(context, cfg.name, longest)


def num_layers(cfg: LlmConfig) -> int:
    """Return how many layers the part of a model that reads text has.

    Raises:
        ConfigError: there is no such model here, or its config does not say.
    """
    path = resolve_here(cfg.name)
    if path is not None:
        stated = _text_part(read_json(Path(path) / "config.json") or {}).get("num_hidden_layers")
        if isinstance(stated, int):
            return stated
    from transformers import AutoConfig

    from sae_dist.llm.architecture import text_part
    from sae_dist.llm.hub import loading, resolve_name

    with loading(cfg.name):
        config = AutoConfig.from_pretrained(
            path or resolve_name(cfg.name), trust_remote_code=cfg.trust_remote_code
        )
    stated = getattr(text_part(config), "num_hidden_layers", None)
    if not isinstance(stated, int):
        raise ConfigError(f"llm.name={cfg.name} does not say how many layers it has; write hooks without *")
    return stated


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part about the language model, in a model of several modalities."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config
